"""The offline models: found, verified, converted once; what is refused before and after."""

import shutil
from collections import namedtuple

import pytest

from course_correction.base.errors import UsageError
from course_correction.generation import offline_models
from course_correction.generation.offline_models import OFFLINE_MODELS, base_model_id, pinned_revision, resolve_model_name
from course_correction.generation.package_parts import PackageParts

FILE = b"not a model, but enough for its digest"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def in_parts(tmp_path, monkeypatch):
    """Put a small model, whose packages are replaced by one file, among the offline models; return its cache folder."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("COURSE_CORRECTION_CACHE", str(cache))
    digest = "0d3cf84e8e7fd4a0bf2b3f1b9c4ab4a7bd1bf9f2a6e4c0f7a0b5a3d2c1e0f9d8"
    model = offline_models.OfflineModel("owner/name", "mit", len(FILE), digest, 8, parts=PackageParts("part", "1", 2))
    monkeypatch.setitem(OFFLINE_MODELS, "small", model)

    def join(name, parts, folder):
        folder.mkdir(parents=True)
        (folder / "model.gguf").write_bytes(FILE)
        return folder / "model.gguf"

    monkeypatch.setattr(offline_models, "join_parts", join)
    return cache


def convert(name, file, folder):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")


def test_another_name_is_passed_on_as_it_is():
    assert resolve_model_name("owner/name") == "owner/name"
    assert pinned_revision("owner/name", "abc") == "abc"
    assert pinned_revision("owner/name", None) is None


def test_a_file_with_another_digest_is_never_converted(in_parts, monkeypatch):
    monkeypatch.setattr(offline_models, "_convert_gguf", lambda *_: pytest.fail("converted"))
    with pytest.raises(UsageError, match=r"small has another SHA-256 than the pinned .* pass owner/name"):
        resolve_model_name("small")


def test_a_verified_file_is_converted_once_and_its_parts_are_removed(in_parts, monkeypatch):
    import hashlib
    from dataclasses import replace

    model = replace(OFFLINE_MODELS["small"], sha256=hashlib.sha256(FILE).hexdigest())
    monkeypatch.setitem(OFFLINE_MODELS, "small", model)
    monkeypatch.setattr(offline_models, "_convert_gguf", convert)
    folder = resolve_model_name("small")
    assert sorted(path.name for path in in_parts.iterdir() if not path.name.startswith(".")) == [f"small-{len(FILE)}"]
    monkeypatch.setattr(offline_models, "_convert_gguf", lambda *_: pytest.fail("converted twice"))
    assert resolve_model_name("small") == folder


@pytest.mark.parametrize("kind", ["disk space", "memory"])
def test_too_little_room_is_said_with_both_figures_before_anything_is_fetched(kind, in_parts, monkeypatch):
    import psutil

    monkeypatch.setattr(offline_models, "join_parts", lambda *_: pytest.fail("fetched"))
    if kind == "disk space":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 10))
    else:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(10))
    with pytest.raises(UsageError, match=rf"small needs \d+\.\d GiB of .*{kind}.*, and 0\.0 GiB are there"):
        resolve_model_name("small")


def test_the_base_of_an_offline_model_is_its_hub_id_with_its_licence():
    assert base_model_id("qwen2.5-coder-0.5b") == ("Qwen/Qwen2.5-Coder-0.5B-Instruct", "apache-2.0")


@pytest.mark.slow
def test_smollm2_is_converted_anew_to_the_same_weights(tmp_path, monkeypatch):
    """The conversion in bfloat16 takes half the memory of the one in float32 that the cached weights were made by."""
    from pathlib import Path

    from safetensors.torch import load_file

    known = load_file(Path(resolve_model_name("smollm2-135m")) / "model.safetensors")
    monkeypatch.setenv("COURSE_CORRECTION_CACHE", str(tmp_path))
    (tmp_path / "smollm2-135m-98362432").mkdir()  # As an interrupted conversion leaves it.
    made = load_file(Path(resolve_model_name("smollm2-135m")) / "model.safetensors")
    assert known.keys() == made.keys()
    assert all(known[name].equal(made[name]) for name in known)


@pytest.mark.slow
def test_qwen_is_fetched_verified_and_continues_a_prefill():
    from course_correction.generation.loading import load_model, load_tokenizer

    tokenizer, model = load_tokenizer("qwen2.5-coder-0.5b"), load_model("qwen2.5-coder-0.5b")
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert sum(parameter.numel() for parameter in model.parameters()) == OFFLINE_MODELS["qwen2.5-coder-0.5b"].parameters
