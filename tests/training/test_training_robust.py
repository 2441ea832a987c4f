"""Training that is stopped, fails, or runs in several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from course_correction.base.errors import UsageError
from tests.support.rows import ROOT, write_rows
from tests.support.training import OBJECTIVES, TERMS, changed, read_rows, snapshot

pytestmark = pytest.mark.usefixtures("own_dataset_cache")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_training_has_the_losses_and_weights_of_an_uninterrupted_one(objective, parse, tmp_path):
    from course_correction.training.run import build_trainer

    options = {"objective": objective, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "lora_dropout": 0.1}
    options |= TERMS if objective == "grouped" else {}
    results = []
    for folder, checkpoint in (("whole", None), ("resumed", tmp_path / "whole" / "checkpoint-3")):
        trainer, _ = build_trainer(*parse(output_dir=tmp_path / folder, per_device_train_batch_size=1, **options))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        results.append((trainer.state.log_history, snapshot(trainer.model)))
    (whole_log, whole), (resumed_log, resumed) = results
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in (whole_log, resumed_log)]
    assert len(losses[0]) == len(losses[1]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert all(resumed[name].allclose(whole[name], rtol=1e-4, atol=1e-6) for name in whole)


def test_a_checkpoint_of_other_settings_or_other_benign_rows_is_refused(parse, tmp_path):
    from course_correction.training.run import train

    benign = [{"prompt": "How do I boil an egg?", "response": "In water, for six minutes."}]
    write_rows(tmp_path / "benign.jsonl", benign)
    options = {"objective": "grouped", "save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": "last"}
    options |= {"retention_weight": 1.0, "retention_file": str(tmp_path / "benign.jsonl")}
    folder = train(*parse(**options))
    (folder / "train_metrics.json").unlink()
    with pytest.raises(UsageError, match=r"other settings \(beta: 0.1 there, 0.3 now\)"):
        train(*parse(**options, beta=0.3))
    with pytest.raises(UsageError, match="attn_implementation: None there, 'eager' now"):
        train(*parse(**options, attn_implementation="eager"))
    # Settings of TRL that this project never mentions decide the weights too.
    with pytest.raises(UsageError, match=r"\(adam_beta2: 0.999 there, 0.9 now. neftune_noise_alpha: None there, "):
        train(*parse(**options, adam_beta2=0.9, neftune_noise_alpha=5))
    with pytest.raises(UsageError, match="use_dora: False there, True now"):
        train(*parse(**options, use_dora=True))
    write_rows(tmp_path / "benign.jsonl", [*benign, {"prompt": "And an onion?", "response": "Longer."}])
    with pytest.raises(UsageError, match=r"other settings \(benign_digest: "):
        train(*parse(**options))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_loss_that_is_no_number_stops_training_and_keeps_the_checkpoints(objective, parse, tmp_path, monkeypatch):
    import torch

    from course_correction.training.run import train

    settings = parse(objective=objective, max_steps=4, save_strategy="steps", save_steps=1)
    from trl import DPOTrainer

    from course_correction.training.trainer import GroupedDPOTrainer

    trainer_class = GroupedDPOTrainer if objective == "grouped" else DPOTrainer
    compute = trainer_class._compute_loss

    def broken(self, *arguments, **options):
        loss = compute(self, *arguments, **options)
        return loss * (float("nan") if self.state.global_step == 2 else 1.0)

    monkeypatch.setattr(trainer_class, "_compute_loss", broken)
    with pytest.raises(UsageError, match="The loss of step 3 is nan") as failure:
        train(*settings)
    assert "\n" not in str(failure.value)
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "out" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert not (tmp_path / "out" / "train_metrics.json").exists()


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate", "DefaultCPUAllocator: can't allocate memory"])
def test_running_out_of_memory_names_the_settings_to_lower(message, parse, monkeypatch):
    from course_correction.training.run import train
    from course_correction.training.trainer import GroupedDPOTrainer

    def fail(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(GroupedDPOTrainer, "_compute_loss", fail)
    with pytest.raises(UsageError, match=r"Out of memory with per_device_train_batch_size 2.*retention_rows") as failure:
        train(*parse(objective="grouped"))
    assert "\n" not in str(failure.value)


def test_precomputed_reference_log_probabilities_change_nothing_and_are_kept(parse, tmp_path, monkeypatch):
    from course_correction.training.run import build_trainer
    from course_correction.training.trainer import GroupedDPOTrainer

    monkeypatch.setenv("COURSE_CORRECTION_CACHE", str(tmp_path / "cache"))
    results = []
    for precompute in (False, True, True):
        if len(results) == 2:
            # Now they must come from the disk.
            monkeypatch.setattr(GroupedDPOTrainer, "_reference", lambda self: pytest.fail("the reference ran again"))
        trainer, _ = build_trainer(*parse(objective="grouped", precompute_ref_log_probs=precompute))
        trainer.train()
        results.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(list((tmp_path / "cache" / "reference_logps").glob("*.json"))) == 1
    # Groups run one by one, not padded to each other's length: another last bit.
    assert results[1] == pytest.approx(results[0], rel=1e-4)
    assert results[2] == results[1]


def test_the_references_own_answers_join_the_benign_rows_and_are_kept(parse, tmp_path, monkeypatch):
    from course_correction.training import reference
    from course_correction.training.run import build_trainer

    monkeypatch.setenv("COURSE_CORRECTION_CACHE", str(tmp_path / "cache"))
    terms = {"objective": "grouped", "retention_weight": 1.0}
    written = build_trainer(*parse(**terms))[0].data_collator.benign
    own_terms = terms | {"retention_own_answers": 5, "retention_own_tokens": 7}
    trainer, _ = build_trainer(*parse(**own_terms))
    own = trainer.data_collator.benign[len(written) :]
    assert trainer.data_collator.benign[: len(written)] == written
    assert 1 <= len(own) <= 5 and all(1 <= len(ids) - start <= 7 for ids, start in own)
    prompts = {tuple(ids[:start]) for ids, start in written}
    assert {tuple(ids[:start]) for ids, start in own} <= prompts
    # The untrained adapter changes nothing, so these are the base model's greedy words.
    ids, start = own[0]
    import torch

    with torch.no_grad():
        assert trainer.model(torch.tensor([ids[:start]])).logits[0, -1].argmax() == ids[start]
    monkeypatch.setattr(reference, "continue_prefills", lambda *_: pytest.fail("answered again"))
    assert build_trainer(*parse(**own_terms))[0].data_collator.benign == written + own


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_on_a_request_of_the_evaluation_is_refused(objective, parse, dataset_folder, tmp_path):
    from course_correction.training.run import build_trainer

    row = read_rows(dataset_folder, "ranked")[0]
    item = {"request_id": "x", "request": row["request"].upper(), "full_harmful_response": "text", "source": "mine"}
    (tmp_path / "items.jsonl").write_text(json.dumps(item))
    with pytest.raises(UsageError, match="holds 1 requests of the C²-Eval items"):
        build_trainer(*parse(objective=objective, held_out=tmp_path / "items.jsonl"))


def test_all_weights_are_kept_close_to_a_reference_of_their_own(parse):
    from course_correction.training.run import build_trainer

    options = TERMS | {"use_peft": False, "retention_rows": 2, "max_steps": 3}
    trainer, _ = build_trainer(*parse(objective="grouped", **options))
    before = snapshot(trainer.ref_model)
    trainer.train()
    first, *_, last = [entry["loss/retention_kl"] for entry in trainer.state.log_history if "loss" in entry]
    assert first == pytest.approx(0, abs=1e-6)
    assert last > 1e-4
    assert not any(changed(trainer.ref_model, before).values())


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tiny_model_folder, dataset_folder, tmp_path):
    from safetensors.torch import load_file

    weights = []
    for processes in (1, 2):
        folder = tmp_path / f"of{processes}"
        done = subprocess.run(
            [
                # What `accelerate launch` starts on GPUs; on CPUs it would start processes that know nothing of each other.
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
                str(ROOT / "train_dpo.py"),
                "--model_name_or_path", str(tiny_model_folder), "--dataset_name", str(dataset_folder),
                # Two groups, so that a step is both of them: a third would be filled up on two processes.
                "--max_groups", "2", "--per_device_train_batch_size", str(2 // processes), "--max_steps", "2",
                "--use_cpu", "true",
                "--bf16", "false", "--dtype", "float32", "--use_peft", "true", "--lora_target_modules", "all-linear",
                "--lora_dropout", "0", "--correction_nll_weight", "1", "--max_length", "2048", "--report_to", "none",
                "--save_strategy", "no", "--optim", "sgd", "--learning_rate", "0.01", "--lr_scheduler_type", "constant",
                "--max_grad_norm", "0", "--output_dir", str(folder),
            ],
            env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        weights.append(load_file(folder / "adapter_model.safetensors"))
    # SGD moves the weights by their gradients: B matrices start at zero, so after two steps both kinds have moved.
    one, two = weights
    assert max(tensor.abs().max() for name, tensor in one.items() if "lora_B" in name) > 1e-4
    assert all(two[name].allclose(one[name], rtol=1e-3, atol=1e-6) for name in one)


@pytest.mark.slow
def test_a_training_killed_by_kill_9_resumes_to_the_weights_of_an_uninterrupted_one(
    tiny_model_folder, dataset_folder, tmp_path
):
    import signal
    import time

    from safetensors.torch import load_file

    def start(folder: Path) -> subprocess.Popen:
        return subprocess.Popen(
            [
                sys.executable, str(ROOT / "train_dpo.py"), "--model_name_or_path", str(tiny_model_folder),
                "--dataset_name", str(dataset_folder), "--max_steps", "24", "--save_strategy", "steps", "--save_steps", "4",
                "--use_cpu", "true", "--bf16", "false", "--dtype", "float32", "--use_peft", "true",
                "--lora_target_modules", "all-linear", "--max_length", "2048", "--report_to", "none",
                "--correction_nll_weight", "1", "--transition_weight", "0.5", "--transition_rows", "2",
                "--retention_weight", "1", "--resume_from_checkpoint", "last", "--output_dir", str(folder),
            ],
            env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    killed = start(tmp_path / "killed")
    while killed.poll() is None and not list((tmp_path / "killed").glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.01)
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "it ended before it could be killed"
    for name in ("killed", "whole"):
        process = start(tmp_path / name)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("killed", "whole"))
    assert all(two[name].allclose(one[name], rtol=1e-4, atol=1e-6) for name in one)
    metrics = json.loads((tmp_path / "killed" / "train_metrics.json").read_text())
    assert sum("loss" in entry for entry in metrics["log"]) >= 2
