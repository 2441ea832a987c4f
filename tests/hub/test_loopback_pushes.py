"""Pushes to the loopback Hub: whole after faults, and loaded back by datasets, transformers, peft and evaluate."""

import hashlib

from tests.support.fresh_hub import hub as hub
from tests.support.fresh_hub import run as run


def test_a_push_that_fails_changes_nothing_and_succeeds_when_repeated(hub, run):
    hub.fail("^PUT /lfs-upload/", cut=True)
    hub.fail("^PUT /lfs-upload/", 429, after=1, headers={"Retry-After": "0"})
    hub.fail("^PUT /lfs-upload/", 403, after=2)
    commits = [{"cut": True}, {"status": 500}, {"status": 503}, {"status": 412}, {"status": 429}]
    for fault in commits:
        hub.fail("^POST /api/models/me/model/commit/", after=2, **fault)
    hub.fail("^GET /me/model/resolve/.*/two.bin", cut=True)
    results = run("""
        api.create_repo("me/model")

        def push(name, content):
            api.create_commit("me/model", [
                CommitOperationAdd(f"{name}.bin", content * 500_000), CommitOperationAdd(f"{name}.txt", content)
            ], commit_message=name)

        def state():
            return [api.model_info("me/model").sha, sorted(api.list_repo_files("me/model"))]

        results = {"cut upload": caught(push, "one", b"1"), "rate limit": caught(push, "two", b"2")}
        before = state()
        results["forbidden upload"] = caught(push, "three", b"3")
        results["commits"] = [caught(push, "three", b"3") for _ in range(5)]
        results["unchanged"] = state() == before
        results["last"] = caught(push, "three", b"3")
        results["files"] = state()[1]
        results["resumed"] = Path(api.hf_hub_download("me/model", "two.bin")).read_bytes() == b"2" * 500_000
        print(json.dumps(results))
    """)
    assert results == {
        "cut upload": None,
        "rate limit": None,
        "forbidden upload": ["RuntimeError", None],
        "commits": [[results["commits"][0][0], None], *(["HfHubHTTPError", status] for status in (500, 503, 412, 429))],
        "unchanged": True,
        "last": None,
        "files": sorted([".gitattributes", *(f"{n}.{s}" for n in ("one", "two", "three") for s in ("bin", "txt"))]),
        "resumed": True,
    }
    assert results["commits"][0][0] in ("ReadError", "WriteError", "RemoteProtocolError")
    assert hub.unknown == []


def test_a_dataset_of_two_configs_loads_back_plain_and_streaming(hub, run):
    run("""
        import os
        from datasets import Dataset, DatasetDict

        api.create_repo("me/data", repo_type="dataset", private=True)
        large = [{"id": i, "text": os.urandom(15_000).hex()} for i in range(1_000)]
        DatasetDict({"train": Dataset.from_list(large)}).push_to_hub("me/data", "large")
        small = DatasetDict({name: Dataset.from_list([{"prompt": name}]) for name in ("train", "test")})
        small.push_to_hub("me/data", "small")
        DatasetDict({"train": Dataset.from_list([{"prompt": "new"}])}).push_to_hub("me/data", "small", create_pr=True)
        print("0")
    """)
    results = run(
        """
        from datasets import get_dataset_config_names, load_dataset

        large = load_dataset("me/data", "large", split="train")
        streamed = load_dataset("me/data", "large", split="train", streaming=True)
        small = load_dataset("me/data", "small")
        print(json.dumps({
            "configs": sorted(get_dataset_config_names("me/data")),
            "rows": [len(large), sorted(set(map(len, large["text"])))],
            "first": next(iter(streamed)) == large[0],
            "streamed": sum(1 for _ in load_dataset("me/data", "small", split="test", streaming=True)),
            "small": {name: split["prompt"][:] for name, split in small.items()},
        }))
        """,
        home="another-home",
    )
    assert results == {
        "configs": ["large", "small"],
        "rows": [1_000, [30_000]],
        "first": True,
        "streamed": 1,
        "small": {"train": ["train"], "test": ["test"]},
    }
    files = hub.files("dataset", "me/data")
    assert {"README.md", "large/train-00000-of-00001.parquet", "small/test-00000-of-00001.parquet"} <= set(files)
    assert max(map(len, files.values())) > 29_000_000
    parquet = {hashlib.sha256(content).hexdigest() for path, content in files.items() if path.endswith(".parquet")}
    assert parquet < {request.removeprefix("PUT /lfs-upload/") for request in hub.requests}
    assert [d["status"] for d in hub.repo("dataset", "me/data")["discussions"]] == ["open"]
    assert hub.unknown == []


def test_models_adapters_tokenizers_metrics_and_cards_load_back(hub, run, tiny_model_folder):
    results = run(
        """
        import evaluate, torch
        from huggingface_hub import ModelCard, metadata_update
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
        tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
        model.push_to_hub("me/model")
        tokenizer.push_to_hub("me/model")
        adapter = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        adapter.push_to_hub("me/adapter", private=True)
        ModelCard("---\\nlicense: mit\\n---\\n# Card").push_to_hub("me/adapter")
        metadata_update("me/adapter", {"base_model": "me/model"})
        api.create_repo("me/metric", repo_type="space", space_sdk="static")
        Path("metric.py").write_text(
            "import datasets\\nimport evaluate\\n"
            "class Metric(evaluate.Metric):\\n"
            "    def _info(self):\\n"
            "        features = datasets.Features({'predictions': datasets.Value('int64')})\\n"
            "        return evaluate.MetricInfo(description='', citation='', features=features)\\n"
            "    def _compute(self, predictions):\\n"
            "        return {'sum': int(sum(predictions))}\\n"
        )
        api.upload_file(path_or_fileobj="metric.py", path_in_repo="metric.py", repo_id="me/metric", repo_type="space")

        loaded = AutoModelForCausalLM.from_pretrained("me/model")
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("me/model"), "me/adapter")
        ids = AutoTokenizer.from_pretrained("me/model")("Hello", return_tensors="pt").input_ids
        with torch.no_grad():
            same = torch.equal(adapter(ids).logits, adapted(ids).logits)
            other_logits = not torch.equal(loaded(ids).logits, adapted(ids).logits)
        card = ModelCard.load("me/adapter")
        print(json.dumps({
            "same": same,
            "adapted": other_logits,
            "ids": ids.tolist() == tokenizer("Hello", return_tensors="pt").input_ids.tolist(),
            "metric": evaluate.load("me/metric").compute(predictions=[1, 2]),
            "card": [card.data.license, card.data.base_model],
        }))
        """,
        tiny_model_folder,
    )
    assert results == {"same": True, "adapted": True, "ids": True, "metric": {"sum": 3}, "card": ["mit", "me/model"]}
    assert hub.unknown == []
