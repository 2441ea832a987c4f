"""Laws of sampling from a server: bounded, retried, the paths of the model in this process, no text in any message."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl
from course_correction.base.settings import check_values, identity_of
from course_correction.generation.choice import SamplerSettings, check_backend
from course_correction.generation.offline_models import resolve_model_name
from course_correction.generation.openai_client import Server, ServerError
from course_correction.generation.protocol import Model, SamplingSettings, Tokenizer
from course_correction.generation.samplers import ModelSampler
from tests.support.chat_models import build_tiny_model
from tests.support.resumable_rows import rows_so_far
from tests.support.server import GREEDY, Scripted, make_prefills, server_sampler

pytestmark = pytest.mark.usefixtures("plain_environment")

# Abilities of the server


@pytest.mark.parametrize("takes_ids", [True, False])
@pytest.mark.parametrize("gives_many", [True, False])
def test_greedy_paths_from_a_server_equal_those_of_the_model_in_this_process(
    tiny_sampler: ModelSampler, takes_ids: bool, gives_many: bool, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = Scripted(tiny_sampler, takes_ids, gives_many)
    prefills = make_prefills(tiny_sampler.tokenizer)
    wanted = tiny_sampler.sample(prefills, GREEDY)
    with scripted.serve() as url:
        sampled = server_sampler(url, tiny_sampler.tokenizer).sample(prefills, GREEDY)
    assert [(row.text.strip(), row.ended) for row in sampled] == [(row.text.strip(), row.ended) for row in wanted]
    calls = [call for call in scripted.calls if call["max_tokens"] == 6]
    assert len(calls) == (len(prefills) // 2 if gives_many else len(prefills))
    assert all(isinstance(call["prompt"], list) == takes_ids for call in calls)
    assert ("takes no token ids" in caplog.text) == (not takes_ids)
    assert ("one choice per call" in caplog.text) == (not gives_many)


def test_a_server_that_misreads_token_ids_is_sent_text(tiny_sampler: ModelSampler) -> None:
    scripted = Scripted(tiny_sampler)
    honest = scripted.complete

    def misread(asked: dict[str, Any]) -> dict[str, Any] | None:
        answer = honest(asked)
        if isinstance(asked["prompt"], list):
            answer["usage"]["prompt_tokens"] += 3
        return answer

    scripted.complete = misread
    with scripted.serve() as url:
        server_sampler(url, tiny_sampler.tokenizer).sample(make_prefills(tiny_sampler.tokenizer, 1), GREEDY)
    assert isinstance(scripted.calls[-1]["prompt"], str)


def test_a_bos_that_the_server_adds_is_not_sent(tokenizers: dict[str, Tokenizer], tiny_llama: Model) -> None:
    tokenizer = tokenizers["llama-3"]
    sampler = ModelSampler(build_tiny_model("llama", tokenizer), tokenizer, batch_size=16)
    scripted = Scripted(sampler, takes_ids=False, adds_bos=True)
    prefills = make_prefills(tokenizer, 1, 1)
    with scripted.serve() as url:
        sampled = server_sampler(url, tokenizer).sample(prefills, GREEDY)
    assert all(not call["prompt"].startswith(tokenizer.bos_token) for call in scripted.calls[2:])
    assert [row.text.strip() for row in sampled] == [row.text.strip() for row in sampler.sample(prefills, GREEDY)]


def test_each_path_has_its_own_seed_which_depends_on_seed_and_draw_key_alone(tiny_sampler: ModelSampler) -> None:
    prefills = make_prefills(tiny_sampler.tokenizer)
    sampling = SamplingSettings(max_new_tokens=5, temperature=1.0, top_p=1.0, seed=4)
    seeds = []
    for order in (prefills, prefills[::-1]):
        scripted = Scripted(tiny_sampler, gives_many=False)
        with scripted.serve() as url:
            server_sampler(url, tiny_sampler.tokenizer).sample(order, sampling)
        seeds.append({call["seed"] for call in scripted.calls if call["max_tokens"] == 5})
    assert seeds[0] == seeds[1] and len(seeds[0]) == len(prefills)


# A server that misbehaves

GARBAGE = (200, "<html>busy</html>", {})
FAULTS = {
    "429": (429, "{}", {}),
    "429 with Retry-After": (429, "{}", {"Retry-After": "0.05"}),
    "500": (500, "oops", {}),
    "503": (503, "", {}),
    "dropped connections": "drop",
    "garbage": GARBAGE,
    "half an answer": (200, '{"id": "1", "choices": [', {}),
    "no choices": (200, '{"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": []}', {}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_transient_faults_change_no_path(tiny_sampler: ModelSampler, name: str) -> None:
    prefills = make_prefills(tiny_sampler.tokenizer)
    scripted = Scripted(tiny_sampler)
    scripted.fault = lambda number: FAULTS[name] if number > 1 and number % 2 == 0 else None
    with scripted.serve() as url:
        sampled = server_sampler(url, tiny_sampler.tokenizer, max_retries=8).sample(prefills, GREEDY)
    assert [row.text.strip() for row in sampled] == [row.text.strip() for row in tiny_sampler.sample(prefills, GREEDY)]


def test_a_call_that_times_out_is_retried(tiny_sampler: ModelSampler) -> None:
    prefills = make_prefills(tiny_sampler.tokenizer, 1, 1)
    scripted = Scripted(tiny_sampler)

    def delay(number: int) -> None:
        time.sleep(1.0 if number == 2 else 0.0)

    scripted.fault = delay
    with scripted.serve() as url:
        sampled = server_sampler(url, tiny_sampler.tokenizer, timeout_s=0.3).sample(prefills, GREEDY)
    assert len(scripted.calls) > 2
    assert [row.text.strip() for row in sampled] == [row.text.strip() for row in tiny_sampler.sample(prefills, GREEDY)]


@pytest.mark.parametrize("name", ["500", "dropped connections", "garbage"])
def test_a_permanent_fault_is_a_one_line_error_without_any_text(tiny_sampler: ModelSampler, name: str) -> None:
    scripted = Scripted(tiny_sampler)
    scripted.fault = lambda number: FAULTS[name] if number > 3 else None
    prefills = make_prefills(tiny_sampler.tokenizer)
    with scripted.serve() as url, pytest.raises(UsageError) as caught:
        server_sampler(url, tiny_sampler.tokenizer, max_retries=2).sample(prefills, GREEDY)
    message = str(caught.value)
    assert "Finished rows are kept" in message and "\n" not in message
    assert not any(row.request[:20] in message for row in prefills)


def test_retry_after_is_honoured(tiny_sampler: ModelSampler) -> None:
    times: list[float] = []

    def fault(number: int) -> Any:
        times.append(time.monotonic())
        return (429, "{}", {"Retry-After": "0.4"}) if number == 2 else None

    scripted = Scripted(tiny_sampler)
    scripted.fault = fault
    with scripted.serve() as url:
        server_sampler(url, tiny_sampler.tokenizer, max_parallel=1).sample(
            make_prefills(tiny_sampler.tokenizer, 1, 1)[:1], GREEDY
        )
    assert times[2] - times[1] >= 0.4


def test_no_more_calls_run_at_once_than_allowed_and_fewer_when_the_server_is_busy(tiny_sampler: ModelSampler) -> None:
    scripted = Scripted(tiny_sampler, gives_many=False)
    scripted.delay_s = 0.02
    prefills = make_prefills(tiny_sampler.tokenizer, 4, 4)
    with scripted.serve() as url:
        sampler = server_sampler(url, tiny_sampler.tokenizer, max_parallel=4, max_retries=9)
        sampler.sample(prefills, GREEDY)
        assert 2 <= scripted.most_at_once <= 4
        scripted.fault = lambda number: (429, "{}", {}) if scripted.running > 1 else None
        sampler.sample(prefills, GREEDY)
        assert sampler.server.limit.allowed < 4


def test_a_call_that_cannot_succeed_is_not_retried(tiny_sampler: ModelSampler) -> None:
    scripted = Scripted(tiny_sampler)
    scripted.fault = lambda number: (422, '{"error": {"message": "no"}}', {}) if number > 1 else None
    with scripted.serve() as url, pytest.raises(UsageError, match="http 422"):
        server_sampler(url, tiny_sampler.tokenizer).sample(make_prefills(tiny_sampler.tokenizer, 1, 1)[:1], GREEDY)
    assert len(scripted.calls) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_is_a_one_line_error_after_one_call(tiny_sampler: ModelSampler, status: int) -> None:
    scripted = Scripted(tiny_sampler)
    scripted.fault = lambda number: (status, '{"error": {"message": "no"}}', {})
    with scripted.serve() as url, pytest.raises(UsageError, match="refuses 'm' or OPENAI_API_KEY"):
        server_sampler(url, tiny_sampler.tokenizer).sample(make_prefills(tiny_sampler.tokenizer, 1), GREEDY)
    assert len(scripted.calls) == 1


def test_a_missing_server_is_reported_within_seconds(tiny_tokenizer: Tokenizer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(UsageError, match="cannot be reached"):
        server_sampler(f"http://127.0.0.1:{port}/v1", tiny_tokenizer).sample(make_prefills(tiny_tokenizer, 1), GREEDY)
    assert time.monotonic() - start < 10


def test_a_call_that_fails_after_all_retries_names_its_status(tiny_sampler: ModelSampler) -> None:
    scripted = Scripted(tiny_sampler)
    scripted.fault = lambda number: FAULTS["503"]
    with scripted.serve() as url, pytest.raises(ServerError, match="http 503"):
        server = Server(url, "sampling", "--server_url", max_retries=1)
        server.call(lambda client: client.completions.create(model="m", prompt="x"), "m")
    assert len(scripted.calls) == 2


# The scripts


def test_an_evaluation_through_a_server_has_the_rows_of_one_in_this_process(
    tiny_sampler: ModelSampler, tiny_model_folder: Path, tmp_path: Path
) -> None:
    from course_correction.evaluation.run import evaluate
    from course_correction.evaluation.settings import EvaluationSettings

    def settings(name: str, **changes: Any) -> EvaluationSettings:
        values = {"model_name_or_path": str(tiny_model_folder), "max_requests": 3, "prefill_tokens": [5, 12]}
        values |= {"num_paths": 2, "max_new_tokens": 6, "max_benign": 2, "benign_max_new_tokens": 4, "temperature": 0.0}
        return EvaluationSettings(**values | {"output_dir": str(tmp_path / name)} | changes)

    evaluate(settings("here"))
    with Scripted(tiny_sampler).serve() as url:
        metrics = evaluate(settings("server", backend="openai", server_url=url, server_model="m", requests_per_unit=1))
    assert "benign_kl" not in metrics and metrics["over_refusal"]["value"] >= 0
    for name in ("generations.jsonl", "benign_answers.jsonl"):
        key = "continuation" if name.startswith("gen") else "answer"
        here, there = ([row | {key: row[key].strip(), "num_tokens": 0} for row in read_jsonl(tmp_path / f / name)]
                       for f in ("here", "server"))  # fmt: skip
        assert here == there


def test_synthesis_through_a_server_resumes_where_it_failed(
    tiny_sampler: ModelSampler, tiny_model_folder: Path, tmp_path: Path
) -> None:
    from course_correction.synthesis.run import synthesize
    from course_correction.synthesis.settings import SynthesisSettings

    def settings(name: str, url: str) -> SynthesisSettings:
        return SynthesisSettings(
            teacher="openai", teacher_model=str(tiny_model_folder), server_model="m", server_url=url, max_requests=6,
            requests_per_unit=1, max_new_tokens=5, output_dir=str(tmp_path / name),
        )  # fmt: skip

    scripted = Scripted(tiny_sampler)
    scripted.delay_s = 0.01
    with scripted.serve() as url:
        whole = synthesize(settings("whole", url)).read_bytes()
        scripted.calls.clear()
        # Of four units in flight with five calls each, one is complete by the seventeenth call; about two calls probe first.
        scripted.fault = lambda number: (422, "{}", {}) if number > 22 else None
        with pytest.raises(UsageError, match="http 422"):
            synthesize(settings("stopped", url))
        assert 0 < len(rows_so_far(tmp_path / "stopped" / "groups.jsonl")) < 6
        scripted.fault = lambda number: None
        assert synthesize(settings("stopped", url)).read_bytes() == whole
    assert {json.loads(line).get("teacher") for line in whole.splitlines()} <= {"m", None}


@pytest.mark.parametrize(
    ("by_server", "url", "words"), [(True, None, "needs server_url"), (False, "http://x", "backend is not openai")]
)
def test_a_server_without_url_and_a_url_without_server_are_refused(by_server: bool, url: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_backend(by_server, url, "backend")


@pytest.mark.parametrize("name", ["batch_size", "max_parallel_calls", "call_timeout"])
def test_limits_of_zero_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is 0"):
        check_values(SamplerSettings(**{name: 0}))


def test_the_settings_that_decide_paths_are_all_but_the_limits_of_calls() -> None:
    names = {"batch_size", "share_prefix", "server_url", "server_model", "chat_template"}
    assert set(identity_of(SamplerSettings(), "model")) == names


# A real server


@pytest.mark.slow
def test_paths_and_groups_from_transformers_serve_equal_those_of_the_model_in_this_process(
    transformers_serve: str, tmp_path: Path
) -> None:
    from course_correction.evaluation.run import evaluate
    from course_correction.evaluation.settings import EvaluationSettings
    from course_correction.synthesis.run import synthesize
    from course_correction.synthesis.settings import SynthesisSettings

    served = {"server_url": transformers_serve, "server_model": resolve_model_name("smollm2-135m"), "max_parallel_calls": 1}
    for name, options in (("here", {"dtype": "float32"}), ("server", {"backend": "openai", **served})):
        evaluate(
            EvaluationSettings(
                max_requests=2, prefill_tokens=[10, 40], num_paths=1, max_new_tokens=8, temperature=0.0, max_benign=2,
                benign_max_new_tokens=8, output_dir=str(tmp_path / name), **options,
            )
        )  # fmt: skip
    here, there = ([row["continuation"].strip() for row in read_jsonl(tmp_path / name / "generations.jsonl")]
                   for name in ("here", "server"))  # fmt: skip
    assert here == there and len(here) == 4
    groups = {}
    for teacher, options in (("transformers", {"teacher_dtype": "float32"}), ("openai", served)):
        settings = SynthesisSettings(
            teacher=teacher, max_requests=2, max_new_tokens=8, output_dir=str(tmp_path / teacher), **options
        )
        groups[teacher] = [[" ".join(text.split()) for text in row["responses"]] for row in read_jsonl(synthesize(settings))]
    assert groups["transformers"] == groups["openai"]
