"""Laws of sampling from a server: bounded, patient, the same paths as here, and no text in any message."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl
from course_correction.generation.choice import SamplerSettings, check_backend
from course_correction.generation.decoding import SamplingSettings
from course_correction.generation.openai_client import Server, ServerError
from course_correction.generation.samplers import ModelSampler
from tests.support.server import GREEDY, Scripted, begun_answers, server_sampler

pytestmark = pytest.mark.usefixtures("plain_environment")

# What the server can do


@pytest.mark.parametrize("takes_ids", [True, False])
@pytest.mark.parametrize("gives_many", [True, False])
def test_greedy_paths_from_a_server_are_those_of_the_model_here(
    tiny_sampler: ModelSampler, takes_ids: bool, gives_many: bool, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = Scripted(tiny_sampler, takes_ids, gives_many)
    begun = begun_answers(tiny_sampler.tokenizer)
    wanted = tiny_sampler.sample(begun, GREEDY)
    with scripted.serve() as url:
        found = server_sampler(url, tiny_sampler.tokenizer).sample(begun, GREEDY)
    assert [(row.text.strip(), row.ended) for row in found] == [(row.text.strip(), row.ended) for row in wanted]
    calls = [call for call in scripted.calls if call["max_tokens"] == 6]
    assert len(calls) == (len(begun) // 2 if gives_many else len(begun))
    assert all(isinstance(call["prompt"], list) == takes_ids for call in calls)
    said = caplog.text
    assert ("takes no token ids" in said) == (not takes_ids)
    assert ("one choice a call" in said) == (not gives_many)


def test_a_server_that_reads_ids_as_something_else_is_sent_text(tiny_sampler: ModelSampler) -> None:
    scripted = Scripted(tiny_sampler)
    honest = scripted.complete

    def misread(asked: dict[str, Any]) -> dict[str, Any] | None:
        answer = honest(asked)
        if isinstance(asked["prompt"], list):
            answer["usage"]["prompt_tokens"] += 3
        return answer

    scripted.complete = misread
    with scripted.serve() as url:
        server_sampler(url, tiny_sampler.tokenizer).sample(begun_answers(tiny_sampler.tokenizer, 1), GREEDY)
    assert isinstance(scripted.calls[-1]["prompt"], str)


def test_a_bos_that_the_server_adds_is_not_sent(tokenizers: dict[str, Any], tiny_llama: Any) -> None:
    from tests.support.chat_models import build_tiny_model

    tokenizer = tokenizers["llama-3"]
    sampler = ModelSampler(build_tiny_model("llama", tokenizer), tokenizer, batch_size=16)
    scripted = Scripted(sampler, takes_ids=False, adds_bos=True)
    begun = begun_answers(tokenizer, 1, 1)
    with scripted.serve() as url:
        found = server_sampler(url, tokenizer).sample(begun, GREEDY)
    assert all(not call["prompt"].startswith(tokenizer.bos_token) for call in scripted.calls[2:])
    assert [row.text.strip() for row in found] == [row.text.strip() for row in sampler.sample(begun, GREEDY)]


def test_every_path_has_a_seed_of_its_own_that_depends_on_seed_and_key_alone(tiny_sampler: ModelSampler) -> None:
    begun = begun_answers(tiny_sampler.tokenizer)
    sampling = SamplingSettings(max_new_tokens=5, temperature=1.0, top_p=1.0, seed=4)
    found = []
    for order in (begun, begun[::-1]):
        scripted = Scripted(tiny_sampler, gives_many=False)
        with scripted.serve() as url:
            server_sampler(url, tiny_sampler.tokenizer).sample(order, sampling)
        found.append({call["seed"] for call in scripted.calls if call["max_tokens"] == 5})
    assert found[0] == found[1] and len(found[0]) == len(begun)


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
def test_faults_that_pass_change_no_path(tiny_sampler: ModelSampler, name: str) -> None:
    begun = begun_answers(tiny_sampler.tokenizer)
    scripted = Scripted(tiny_sampler)
    scripted.fault = lambda number: FAULTS[name] if number > 1 and number % 2 == 0 else None
    with scripted.serve() as url:
        found = server_sampler(url, tiny_sampler.tokenizer, max_retries=8).sample(begun, GREEDY)
    assert [row.text.strip() for row in found] == [row.text.strip() for row in tiny_sampler.sample(begun, GREEDY)]


def test_a_slow_answer_is_given_up_and_asked_for_again(tiny_sampler: ModelSampler) -> None:
    begun = begun_answers(tiny_sampler.tokenizer, 1, 1)
    scripted = Scripted(tiny_sampler)

    def dawdle(number: int) -> None:
        time.sleep(1.0 if number == 2 else 0.0)

    scripted.fault = dawdle
    with scripted.serve() as url:
        found = server_sampler(url, tiny_sampler.tokenizer, timeout_s=0.3).sample(begun, GREEDY)
    assert len(scripted.calls) > 2
    assert [row.text.strip() for row in found] == [row.text.strip() for row in tiny_sampler.sample(begun, GREEDY)]


@pytest.mark.parametrize("name", ["500", "dropped connections", "garbage"])
def test_a_fault_that_stays_ends_in_one_line_without_any_text(tiny_sampler: ModelSampler, name: str) -> None:
    scripted = Scripted(tiny_sampler)
    scripted.fault = lambda number: FAULTS[name] if number > 3 else None
    begun = begun_answers(tiny_sampler.tokenizer)
    with scripted.serve() as url, pytest.raises(UsageError) as caught:
        server_sampler(url, tiny_sampler.tokenizer, max_retries=2).sample(begun, GREEDY)
    message = str(caught.value)
    assert "What is finished is kept" in message and "\n" not in message
    assert not any(row.request[:20] in message for row in begun)


def test_retry_after_is_honoured(tiny_sampler: ModelSampler) -> None:
    times: list[float] = []

    def fault(number: int) -> Any:
        times.append(time.monotonic())
        return (429, "{}", {"Retry-After": "0.4"}) if number == 2 else None

    scripted = Scripted(tiny_sampler)
    scripted.fault = fault
    with scripted.serve() as url:
        server_sampler(url, tiny_sampler.tokenizer, max_parallel=1).sample(
            begun_answers(tiny_sampler.tokenizer, 1, 1)[:1], GREEDY
        )
    assert times[2] - times[1] >= 0.4


def test_no_more_calls_run_at_once_than_allowed_and_fewer_when_the_server_is_busy(tiny_sampler: ModelSampler) -> None:
    scripted = Scripted(tiny_sampler, gives_many=False)
    scripted.delay_s = 0.02
    begun = begun_answers(tiny_sampler.tokenizer, 4, 4)
    with scripted.serve() as url:
        sampler = server_sampler(url, tiny_sampler.tokenizer, max_parallel=4, max_retries=9)
        sampler.sample(begun, GREEDY)
        assert 2 <= scripted.most_at_once <= 4
        scripted.fault = lambda number: (429, "{}", {}) if scripted.running > 1 else None
        sampler.sample(begun, GREEDY)
        assert sampler.server._allowed < 4


def test_a_call_that_cannot_succeed_is_not_tried_again(tiny_sampler: ModelSampler) -> None:
    scripted = Scripted(tiny_sampler)
    scripted.fault = lambda number: (422, '{"error": {"message": "no"}}', {}) if number > 1 else None
    with scripted.serve() as url, pytest.raises(UsageError, match="http 422"):
        server_sampler(url, tiny_sampler.tokenizer).sample(begun_answers(tiny_sampler.tokenizer, 1, 1)[:1], GREEDY)
    assert len(scripted.calls) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_is_one_line(tiny_sampler: ModelSampler, status: int) -> None:
    scripted = Scripted(tiny_sampler)
    scripted.fault = lambda number: (status, '{"error": {"message": "no"}}', {})
    with scripted.serve() as url, pytest.raises(UsageError, match="refuses 'm' or OPENAI_API_KEY"):
        server_sampler(url, tiny_sampler.tokenizer).sample(begun_answers(tiny_sampler.tokenizer, 1), GREEDY)
    assert len(scripted.calls) == 1


def test_a_server_that_is_not_there_is_said_so_within_seconds(tiny_tokenizer: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(UsageError, match="cannot be reached"):
        server_sampler(f"http://127.0.0.1:{port}/v1", tiny_tokenizer).sample(begun_answers(tiny_tokenizer, 1), GREEDY)
    assert time.monotonic() - start < 10


def test_a_call_that_failed_for_good_says_why_in_short(tiny_sampler: ModelSampler) -> None:
    scripted = Scripted(tiny_sampler)
    scripted.fault = lambda number: FAULTS["503"]
    with scripted.serve() as url, pytest.raises(ServerError, match="http 503"):
        server = Server(url, "sampling", "--server_url", backoff_s=0.01, max_retries=1)
        server.call(lambda client: client.completions.create(model="m", prompt="x"), "m")
    assert len(scripted.calls) == 2


# The scripts


def test_an_evaluation_by_a_server_has_the_rows_of_one_here(
    tiny_sampler: ModelSampler, tiny_model_folder: Path, tmp_path: Path
) -> None:
    from eval import EvaluationSettings, evaluate

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


def test_synthesis_by_a_server_goes_on_where_it_failed(
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
        # Of four units in flight, five calls each, one is whole by the seventeenth call; two or so go before, to probe.
        scripted.fault = lambda number: (422, "{}", {}) if number > 22 else None
        with pytest.raises(UsageError, match="http 422"):
            synthesize(settings("stopped", url))
        kept = (tmp_path / "stopped" / "groups.jsonl").read_bytes()
        assert 0 < len(kept) < len(whole)
        scripted.fault = lambda number: None
        assert synthesize(settings("stopped", url)).read_bytes() == whole
    assert {json.loads(line).get("teacher") for line in whole.splitlines()} <= {"m", None}


@pytest.mark.parametrize(
    ("by_server", "url", "words"), [(True, None, "needs server_url"), (False, "http://x", "openai only")]
)
def test_a_server_without_url_and_a_url_without_server_are_refused(by_server: bool, url: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_backend(by_server, url, "backend")


@pytest.mark.parametrize("name", ["batch_size", "max_parallel_calls", "call_timeout"])
def test_limits_of_zero_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is 0"):
        SamplerSettings(**{name: 0}).check()


# A real server


@pytest.mark.slow
def test_paths_and_groups_from_transformers_serve_are_those_of_the_model_here(
    transformers_serve: str, tmp_path: Path
) -> None:
    from course_correction.generation.offline_models import resolve_model_name
    from course_correction.synthesis.run import synthesize
    from course_correction.synthesis.settings import SynthesisSettings
    from eval import EvaluationSettings, evaluate

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
