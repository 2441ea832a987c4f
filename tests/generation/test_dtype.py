"""Laws of the dtype: what suits the machine, unless one is requested."""

import copy
from typing import Any

import pytest
import torch

from course_correction.generation.loading import has_fast_bfloat16, load_model, pick_dtype


@pytest.fixture(params=[True, False], ids=["bfloat16 in hardware", "none"])
def has_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    capabilities = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": request.param}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return request.param


def test_a_checkpoint_is_loaded_in_float32_where_bfloat16_is_slow(has_bfloat16, tiny_model_folder, tmp_path, tiny_llama):
    copy.deepcopy(tiny_llama).to(torch.bfloat16).save_pretrained(tmp_path)
    assert has_fast_bfloat16() == has_bfloat16
    assert load_model(str(tmp_path)).dtype == (torch.bfloat16 if has_bfloat16 else torch.float32)
    assert load_model(str(tmp_path), dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(str(tiny_model_folder)).dtype == torch.float32


@pytest.mark.parametrize(("requested", "used"), [("bfloat16",) * 2, ("float16",) * 2, ("float32",) * 2, (None, "auto")])
def test_a_requested_dtype_is_used(requested, used, has_bfloat16):
    assert pick_dtype(requested) == ("float32" if used == "auto" and not has_bfloat16 else used)


def test_a_gpu_uses_the_checkpoints_dtype(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert pick_dtype("auto") == "auto"


def test_the_dtype_is_part_of_a_runs_identity(has_bfloat16, tiny_model_folder, tmp_path):
    from course_correction.evaluation.settings import EvaluationSettings
    from course_correction.generation.evaluated_model import EvaluatedModel

    def identity(**settings: Any) -> dict[str, Any]:
        settings = {"model_name_or_path": str(tiny_model_folder), "output_dir": str(tmp_path), "max_requests": 1} | settings
        return EvaluatedModel(EvaluationSettings(**settings)).identity()

    assert identity()["dtype"] == ("auto" if has_bfloat16 else "float32")
    # A server chooses its own.
    assert identity(backend="openai", server_url="http://localhost:1/v1")["dtype"] == "auto"


def test_the_report_names_the_dtype_used(has_bfloat16, tiny_model_folder, tmp_path):
    from course_correction.evaluation.run import evaluate
    from course_correction.evaluation.settings import EvaluationSettings

    settings = EvaluationSettings(
        model_name_or_path=str(tiny_model_folder), output_dir=str(tmp_path), max_requests=2, max_benign=0,
        prefill_tokens=[10], num_paths=1, max_new_tokens=2,
    )  # fmt: skip
    dtype = "auto" if has_bfloat16 else "float32"
    assert evaluate(settings)["settings"]["dtype"] == dtype
    assert f"| dtype | `{dtype}` |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("recipe", "command", "kept"),
    [("", [], None), ("bf16: true\n", [], True), ("", ["--bf16", "true"], True), ("", ["--bf16=false"], False)],
    ids=["unset", "by the recipe", "on the command line", "off"],
)
def test_training_uses_bfloat16_where_that_is_fast_or_requested(recipe, command, kept, has_bfloat16, tmp_path):
    from course_correction.training.command_line import parse_command_line

    (tmp_path / "recipe.yaml").write_text(f"model_name_or_path: smollm2-135m\n{recipe}")
    arguments = ["--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "out"), *command]
    (_, _, training, _), given = parse_command_line("", arguments)
    assert training.use_cpu and "use_cpu" not in given
    assert training.bf16 == (has_bfloat16 if kept is None else kept)
    # The published recipe trains the same weights on a machine that would choose otherwise.
    assert given.get("bf16", True) == training.bf16
