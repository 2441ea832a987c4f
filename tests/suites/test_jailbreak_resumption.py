"""Suite `jailbreak` stopped, repeated, changed, compared or shared out: the same bytes, or one line that refuses."""

import os
import random
import subprocess
import sys

import pytest

from course_correction.base.errors import UsageError
from course_correction.base.ranks import Ranks
from course_correction.generation import evaluated_model
from course_correction.suites import attack_judges as jailbreak_judges
from course_correction.suites import jailbreak as jailbreak_suite
from course_correction.suites.choice import sample_suite
from course_correction.suites.jailbreak import identity, measure
from tests.support.jailbreak import HELP, MARK, REFUSAL, evaluate, plain, rewrite, rows_of
from tests.support.jailbreak import evaluation_of as evaluation_of
from tests.support.jailbreak import own_cache as own_cache
from tests.support.resumable_rows import rows_so_far
from tests.support.rows import ROOT, write_rows


@pytest.mark.parametrize("name", ["jailbreak.jsonl", "jailbreak_verdicts.jsonl"])
def test_a_file_torn_at_any_byte_is_completed_to_the_same_bytes(name, evaluation_of, monkeypatch):
    for module in (jailbreak_suite, jailbreak_judges):
        monkeypatch.setattr(module, "PROMPTS_PER_UNIT", 3)
    evaluation = evaluation_of()
    first = evaluate(evaluation)
    path = evaluation.folder / name
    whole = path.read_bytes()
    rng = random.Random(name)
    for size in (0, 1, len(whole) - 1, rng.randrange(len(whole))):
        with open(path, "r+b") as file:
            file.truncate(size)
        assert evaluate(evaluation) == first
        assert path.read_bytes() == whole


def test_a_run_stopped_between_units_resumes_to_the_same_bytes(evaluation_of, monkeypatch):
    for module in (jailbreak_suite, jailbreak_judges):
        monkeypatch.setattr(module, "PROMPTS_PER_UNIT", 3)
    whole, stopped = evaluation_of("whole"), evaluation_of("stopped")
    evaluate(whole)
    sample, calls = stopped.model.sampler().sample, []

    def interrupted(prefills, settings):
        calls.append(len(prefills))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(prefills, settings)

    stopped.model.sampler().sample = interrupted
    with pytest.raises(KeyboardInterrupt):
        sample_suite("jailbreak", stopped, Ranks.alone())
    assert len(rows_so_far(stopped.folder / "jailbreak.jsonl")) == 3
    evaluate(stopped)
    assert calls == [3, 3, 3, 2]
    for name in ("jailbreak.jsonl", "jailbreak_verdicts.jsonl"):
        assert (stopped.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_finished_run_is_measured_again_without_loading_the_model(evaluation_of, monkeypatch):
    first = evaluate(evaluation_of())
    monkeypatch.setattr(evaluated_model, "load_sampler", lambda *a: pytest.fail("the model was loaded"))
    assert evaluate(evaluation_of()) == first


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"jailbreak_max_new_tokens": 6}, "jailbreak_max_new_tokens: 5 there, 6 now"),
        ({"max_attack_prompts": 1}, "max_attack_prompts: 2 there, 1 now"),
        ({"jailbreak_ciphers": ["morse"]}, r"jailbreak_ciphers: \['caesar', 'self_cipher'\] there, \['morse'\] now"),
        ({"jailbreak_judge": "judge"}, "jailbreak_judge: 'refusal' there, 'judge' now"),
        ({"dtype": "float32"}, "dtype: 'auto' there, 'float32' now"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_in_the_same_folder_are_refused_with_the_difference(change, difference, evaluation_of, monkeypatch):
    # On a CPU that has no bfloat16, auto is float32.
    monkeypatch.setattr("course_correction.generation.loading.has_fast_bfloat16", lambda: True)
    evaluation = evaluation_of()
    evaluate(evaluation)
    before = {path.name: path.read_bytes() for path in evaluation.folder.iterdir()}
    with pytest.raises(UsageError, match=difference):
        evaluate(evaluation_of(**change))
    after = {path.name: path.read_bytes() for path in evaluation.folder.iterdir()}
    assert after == before


def test_verdicts_on_other_answers_are_refused(evaluation_of):
    evaluation = evaluation_of()
    evaluate(evaluation)
    write_rows(evaluation.folder / "jailbreak.jsonl", [row | {"answer": HELP} for row in rows_of(evaluation)])
    with pytest.raises(UsageError, match="answers_digest"):
        measure(evaluation, None)


def test_an_edited_file_of_prompts_in_the_same_folder_is_refused_without_its_text(evaluation_of, tmp_path):
    file = write_rows(tmp_path / "x.jsonl", [plain()])
    evaluate(evaluation_of(jailbreak_files=[str(file)]))
    write_rows(file, [plain(prompt=f"{MARK} zxq")])
    with pytest.raises(UsageError, match="attack_prompts_digest") as error:
        evaluate(evaluation_of(jailbreak_files=[str(file)]))
    assert MARK not in str(error.value)


def test_the_difference_to_itself_is_zero_and_that_to_refusals_is_paired_by_prompt(evaluation_of, tmp_path, caplog):
    before = evaluation_of("before")
    sample_suite("jailbreak", before, Ranks.alone())
    rewrite(before, [REFUSAL] * 8)
    measure(before, None)
    after = evaluation_of("after", baseline_dir=str(tmp_path / "before"))
    sample_suite("jailbreak", after, Ranks.alone())
    rewrite(after, [REFUSAL] * 8)
    for measured in measure(after, None)["difference"].values():
        assert (measured["value"], measured["ci95"], measured["p_value"]) == (0.0, [0.0, 0.0], 1.0)
    rewrite(after, [HELP, HELP, HELP, REFUSAL, HELP, "", *[REFUSAL] * 2])
    measured = measure(after, None)["difference"]
    assert [measured[name]["value"] for name in measured] == [1.0, 0.5, 1.0, 0.0]
    assert measured["AutoDAN"]["count"] == 1
    # More prompts pair on those that both have.
    more = evaluation_of("more", baseline_dir=str(tmp_path / "before"), max_attack_prompts=3)
    sample_suite("jailbreak", more, Ranks.alone())
    rewrite(more, [HELP] * 12)
    assert measure(more, None)["difference"]["GCG"] | {"p_value": 0} == {
        "value": 1.0, "ci95": [1.0, 1.0], "p_value": 0, "count": 2,
    }  # fmt: skip
    without = evaluation_of("without", baseline_dir=str(tmp_path))
    assert "difference" not in evaluate(without)
    assert "holds no verdicts on attack prompts" in caplog.text


@pytest.mark.parametrize("change", [{"jailbreak_max_new_tokens": 6}, {"jailbreak_judge": "judge"}])
def test_a_baseline_under_other_settings_is_refused_before_the_run(change, evaluation_of, tmp_path):
    evaluate(evaluation_of("before"))
    with pytest.raises(UsageError, match=rf"was measured with {next(iter(change))} .* no difference can be computed"):
        identity(evaluation_of("after", baseline_dir=str(tmp_path / "before"), **change))


SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:3]
from course_correction.base.ranks import Ranks
from course_correction.evaluation.settings import EvaluationSettings
from course_correction.suites.choice import sample_suite
from tests.support.suites import suite_inputs
ranks = Ranks()
settings = EvaluationSettings(model_name_or_path=sys.argv[3], output_dir=sys.argv[4], jailbreak_max_new_tokens=5)
from course_correction.suites import jailbreak as jailbreak_suite
jailbreak_suite.PROMPTS_PER_UNIT = 4
sample_suite("jailbreak", suite_inputs(settings), ranks)
ranks.leave()
"""


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(tiny_model_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for processes in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
        done = subprocess.run(
            [sys.executable, *launch, str(script), str(ROOT), str(ROOT / "tests"), str(tiny_model_folder),
             str(tmp_path / str(processes))],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (tmp_path / str(processes) / "jailbreak.jsonl" for processes in (1, 2))
    assert one.read_bytes() == two.read_bytes() and one.read_bytes().count(b"\n") == 30
    assert not list((tmp_path / "2").glob("*.units"))
