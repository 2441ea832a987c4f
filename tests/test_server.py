"""Laws of sampling from a server: bounded, patient, the same paths as here, and no text in any message."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import read_data

from course_correction.generation import SamplingSettings
from course_correction.prefills import encode_answer, render_prompt
from course_correction.run_files import UsageError, read_jsonl
from course_correction.samplers import BegunAnswer, ModelSampler, SamplerSettings, Written, check_backend
from course_correction.server import Server, ServerError
from course_correction.server_sampler import ServerSampler

GREEDY = SamplingSettings(max_new_tokens=6, temperature=0)


class Scripted:
    """A completions server in this process around a tiny model, with faults as asked for.

    Attributes:
        calls: The requests that came, in order.
        most_at_once: The largest number of requests that were worked on together.
        fault: Is given the number of a call; returns None, or what goes wrong with it.
    """

    def __init__(
        self, sampler: ModelSampler, takes_ids: bool = True, gives_many: bool = True, adds_bos: bool = False
    ) -> None:
        self.sampler, self.takes_ids, self.gives_many, self.adds_bos = sampler, takes_ids, gives_many, adds_bos
        self.calls: list[dict[str, Any]] = []
        self.running = self.most_at_once = 0
        self.fault: Callable[[int], Any] = lambda number: None
        self.delay_s = 0.0
        self.lock, self.model_lock = threading.Lock(), threading.Lock()

    def complete(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """Answer as such servers do; None where this one would answer 400."""
        tokenizer, prompt = self.sampler.tokenizer, asked["prompt"]
        if not isinstance(prompt, str) and not self.takes_ids:
            return None
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] if isinstance(prompt, str) else prompt
        if isinstance(prompt, str) and self.adds_bos:
            ids = [tokenizer.bos_token_id, *ids]
        count = asked.get("n", 1) if self.gives_many else 1
        settings = SamplingSettings(asked["max_tokens"], asked.get("temperature", 1), asked.get("top_p", 1))
        from course_correction.generation import continue_prefills

        keys = [f"{asked.get('seed')} {number}" for number in range(count)]
        with self.model_lock:
            written = continue_prefills(self.sampler.model, tokenizer, [ids] * count, keys, settings)
        choices = [
            {
                "index": n,
                "text": tokenizer.decode(row.token_ids, skip_special_tokens=True),
                "finish_reason": "stop" if row.ended else "length",
            }
            for n, row in enumerate(written)
        ]
        usage = {"prompt_tokens": len(ids), "completion_tokens": sum(len(row.token_ids) for row in written)}
        usage["total_tokens"] = sum(usage.values())
        return {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": choices, "usage": usage}

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Serve on loopback; gives the base URL."""
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with scripted.lock:
                    scripted.calls.append(asked)
                    number = len(scripted.calls)
                    scripted.running += 1
                    scripted.most_at_once = max(scripted.most_at_once, scripted.running)
                try:
                    time.sleep(scripted.delay_s)
                    fault = scripted.fault(number)
                    if fault == "drop":
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                    if fault is None:
                        answer = scripted.complete(asked)
                        fault = (200, json.dumps(answer), {}) if answer else (400, '{"error": {"message": "no"}}', {})
                finally:
                    with scripted.lock:
                        scripted.running -= 1
                status, body, headers = fault
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def local(tiny_llama: Any, tiny_tokenizer: Any) -> ModelSampler:
    return ModelSampler(tiny_llama, tiny_tokenizer, batch_size=16)


def _begun(tokenizer: Any, requests: int = 3, paths: int = 2) -> list[BegunAnswer]:
    return [
        BegunAnswer(
            row["request"], tuple(encode_answer(tokenizer, row["full_harmful_response"])[:k]), f"{number} {k} {path}"
        )
        for number, row in enumerate(read_data("requests_eval")[:requests])
        for k in (5, 12)
        for path in range(paths)
    ]


def _sampler(url: str, tokenizer: Any, **limits: Any) -> ServerSampler:
    return ServerSampler(
        Server(url, "sampling", "--server_url", **{"backoff_s": 0.01, "timeout_s": 10} | limits), "m", tokenizer
    )


# What the server can do


@pytest.mark.parametrize("takes_ids", [True, False])
@pytest.mark.parametrize("gives_many", [True, False])
def test_greedy_paths_from_a_server_are_those_of_the_model_here(
    local: ModelSampler, takes_ids: bool, gives_many: bool, capsys: pytest.CaptureFixture
) -> None:
    scripted = Scripted(local, takes_ids, gives_many)
    begun = _begun(local.tokenizer)
    wanted = local.go_on(begun, GREEDY)
    with scripted.serve() as url:
        found = _sampler(url, local.tokenizer).go_on(begun, GREEDY)
    assert [(row.text.strip(), row.ended) for row in found] == [(row.text.strip(), row.ended) for row in wanted]
    calls = [call for call in scripted.calls if call["max_tokens"] == 6]
    assert len(calls) == (len(begun) // 2 if gives_many else len(begun))
    assert all(isinstance(call["prompt"], list) == takes_ids for call in calls)
    said = capsys.readouterr().err
    assert ("takes no token ids" in said) == (not takes_ids)
    assert ("one choice a call" in said) == (not gives_many)


def test_a_server_that_reads_ids_as_something_else_is_sent_text(local: ModelSampler) -> None:
    scripted = Scripted(local)
    honest = scripted.complete

    def misread(asked: dict[str, Any]) -> dict[str, Any] | None:
        answer = honest(asked)
        if isinstance(asked["prompt"], list):
            answer["usage"]["prompt_tokens"] += 3
        return answer

    scripted.complete = misread
    with scripted.serve() as url:
        _sampler(url, local.tokenizer).go_on(_begun(local.tokenizer, 1), GREEDY)
    assert isinstance(scripted.calls[-1]["prompt"], str)


def test_a_bos_that_the_server_adds_is_not_sent(tokenizers: dict[str, Any], tiny_llama: Any) -> None:
    from conftest import build_tiny_model

    tokenizer = tokenizers["llama-3"]
    sampler = ModelSampler(build_tiny_model("llama", tokenizer), tokenizer, batch_size=16)
    scripted = Scripted(sampler, takes_ids=False, adds_bos=True)
    begun = _begun(tokenizer, 1, 1)
    with scripted.serve() as url:
        found = _sampler(url, tokenizer).go_on(begun, GREEDY)
    assert all(not call["prompt"].startswith(tokenizer.bos_token) for call in scripted.calls[2:])
    assert [row.text.strip() for row in found] == [row.text.strip() for row in sampler.go_on(begun, GREEDY)]


def test_every_path_has_a_seed_of_its_own_that_depends_on_seed_and_key_alone(local: ModelSampler) -> None:
    begun = _begun(local.tokenizer)
    sampling = SamplingSettings(max_new_tokens=5, temperature=1.0, top_p=1.0, seed=4)
    found = []
    for order in (begun, begun[::-1]):
        scripted = Scripted(local, gives_many=False)
        with scripted.serve() as url:
            _sampler(url, local.tokenizer).go_on(order, sampling)
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
def test_faults_that_pass_change_no_path(local: ModelSampler, name: str) -> None:
    begun = _begun(local.tokenizer)
    scripted = Scripted(local)
    scripted.fault = lambda number: FAULTS[name] if number > 1 and number % 2 == 0 else None
    with scripted.serve() as url:
        found = _sampler(url, local.tokenizer, max_retries=8).go_on(begun, GREEDY)
    assert [row.text.strip() for row in found] == [row.text.strip() for row in local.go_on(begun, GREEDY)]


def test_a_slow_answer_is_given_up_and_asked_for_again(local: ModelSampler) -> None:
    begun = _begun(local.tokenizer, 1, 1)
    scripted = Scripted(local)

    def dawdle(number: int) -> None:
        time.sleep(1.0 if number == 2 else 0.0)

    scripted.fault = dawdle
    with scripted.serve() as url:
        found = _sampler(url, local.tokenizer, timeout_s=0.3).go_on(begun, GREEDY)
    assert len(scripted.calls) > 2
    assert [row.text.strip() for row in found] == [row.text.strip() for row in local.go_on(begun, GREEDY)]


@pytest.mark.parametrize("name", ["500", "dropped connections", "garbage"])
def test_a_fault_that_stays_ends_in_one_line_without_any_text(local: ModelSampler, name: str) -> None:
    scripted = Scripted(local)
    scripted.fault = lambda number: FAULTS[name] if number > 3 else None
    begun = _begun(local.tokenizer)
    with scripted.serve() as url, pytest.raises(UsageError) as caught:
        _sampler(url, local.tokenizer, max_retries=2).go_on(begun, GREEDY)
    message = str(caught.value)
    assert "What is finished is kept" in message and "\n" not in message
    assert not any(row.request[:20] in message for row in begun)


def test_retry_after_is_honoured(local: ModelSampler) -> None:
    times: list[float] = []

    def fault(number: int) -> Any:
        times.append(time.monotonic())
        return (429, "{}", {"Retry-After": "0.4"}) if number == 2 else None

    scripted = Scripted(local)
    scripted.fault = fault
    with scripted.serve() as url:
        _sampler(url, local.tokenizer, max_parallel=1).go_on(_begun(local.tokenizer, 1, 1)[:1], GREEDY)
    assert times[2] - times[1] >= 0.4


def test_no_more_calls_run_at_once_than_allowed_and_fewer_when_the_server_is_busy(local: ModelSampler) -> None:
    scripted = Scripted(local, gives_many=False)
    scripted.delay_s = 0.02
    begun = _begun(local.tokenizer, 4, 4)
    with scripted.serve() as url:
        sampler = _sampler(url, local.tokenizer, max_parallel=4, max_retries=9)
        sampler.go_on(begun, GREEDY)
        assert 2 <= scripted.most_at_once <= 4
        scripted.fault = lambda number: (429, "{}", {}) if scripted.running > 1 else None
        sampler.go_on(begun, GREEDY)
        assert sampler.server._allowed < 4


def test_a_call_that_cannot_succeed_is_not_tried_again(local: ModelSampler) -> None:
    scripted = Scripted(local)
    scripted.fault = lambda number: (422, '{"error": {"message": "no"}}', {}) if number > 1 else None
    with scripted.serve() as url, pytest.raises(UsageError, match="http 422"):
        _sampler(url, local.tokenizer).go_on(_begun(local.tokenizer, 1, 1)[:1], GREEDY)
    assert len(scripted.calls) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_is_one_line(local: ModelSampler, status: int) -> None:
    scripted = Scripted(local)
    scripted.fault = lambda number: (status, '{"error": {"message": "no"}}', {})
    with scripted.serve() as url, pytest.raises(UsageError, match="refuses 'm' or OPENAI_API_KEY"):
        _sampler(url, local.tokenizer).go_on(_begun(local.tokenizer, 1), GREEDY)
    assert len(scripted.calls) == 1


def test_a_server_that_is_not_there_is_said_so_within_seconds(tiny_tokenizer: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(UsageError, match="cannot be reached"):
        _sampler(f"http://127.0.0.1:{port}/v1", tiny_tokenizer).go_on(_begun(tiny_tokenizer, 1), GREEDY)
    assert time.monotonic() - start < 10


def test_a_call_that_failed_for_good_says_why_in_short(local: ModelSampler) -> None:
    scripted = Scripted(local)
    scripted.fault = lambda number: FAULTS["503"]
    with scripted.serve() as url, pytest.raises(ServerError, match="http 503"):
        server = Server(url, "sampling", "--server_url", backoff_s=0.01, max_retries=1)
        server.call(lambda client: client.completions.create(model="m", prompt="x"), "m")
    assert len(scripted.calls) == 2


# The scripts


def test_an_evaluation_by_a_server_has_the_rows_of_one_here(
    local: ModelSampler, tiny_model_folder: Path, tmp_path: Path
) -> None:
    from eval import EvaluationSettings, evaluate

    def settings(name: str, **changes: Any) -> EvaluationSettings:
        values = {"model_name_or_path": str(tiny_model_folder), "max_requests": 3, "prefill_tokens": [5, 12]}
        values |= {"num_paths": 2, "max_new_tokens": 6, "max_benign": 2, "benign_max_new_tokens": 4, "temperature": 0.0}
        return EvaluationSettings(**values | {"output_dir": str(tmp_path / name)} | changes)

    evaluate(settings("here"))
    with Scripted(local).serve() as url:
        metrics = evaluate(settings("server", backend="openai", server_url=url, server_model="m", requests_per_unit=1))
    assert "benign_kl" not in metrics and metrics["over_refusal"]["value"] >= 0
    for name in ("generations.jsonl", "benign_answers.jsonl"):
        key = "continuation" if name.startswith("gen") else "answer"
        here, there = ([row | {key: row[key].strip(), "num_tokens": 0} for row in read_jsonl(tmp_path / f / name)]
                       for f in ("here", "server"))  # fmt: skip
        assert here == there


def test_synthesis_by_a_server_goes_on_where_it_failed(local: ModelSampler, tiny_model_folder: Path, tmp_path: Path) -> None:
    from c2_syn import SynthesisSettings, synthesize

    def settings(name: str, url: str) -> SynthesisSettings:
        return SynthesisSettings(
            teacher="openai", teacher_model=str(tiny_model_folder), server_model="m", server_url=url, max_requests=6,
            requests_per_unit=1, max_new_tokens=5, output_dir=str(tmp_path / name),
        )  # fmt: skip

    scripted = Scripted(local)
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


# A model in this process


def test_memory_that_runs_out_makes_batches_smaller_and_changes_no_path(
    local: ModelSampler, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    begun = _begun(local.tokenizer, 4, 3)
    wanted = local.go_on(begun, GREEDY)
    for shares in (True, False):
        sampler = ModelSampler(local.model, local.tokenizer, 100, shares)
        go_on, sizes = sampler._continue, []

        def in_little_memory(batch: list, *arguments: Any, go_on: Any = go_on, sizes: list = sizes) -> Any:
            sizes.append(sum(map(len, batch)))
            if sizes[-1] > 5:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return go_on(batch, *arguments)

        monkeypatch.setattr(sampler, "_continue", in_little_memory)
        assert sampler.go_on(begun, GREEDY) == wanted
        assert sizes[0] == 24 and sizes[-1] <= 5 and sampler.batch_size <= 5
        assert "Out of memory with 24 rows: going on with at most 12" in capsys.readouterr().err


def test_memory_too_small_for_one_row_is_one_line(local: ModelSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = ModelSampler(local.model, local.tokenizer, 100)

    def fail(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(sampler, "_continue", fail)
    with pytest.raises(UsageError, match="Out of memory with a single row"):
        sampler.go_on(_begun(local.tokenizer), GREEDY)


def test_another_error_is_not_taken_for_lack_of_memory(local: ModelSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = ModelSampler(local.model, local.tokenizer, 100)

    def fail(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(sampler, "_continue", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        sampler.go_on(_begun(local.tokenizer), GREEDY)


def test_a_prefill_longer_than_the_model_reads_is_named(tiny_tokenizer: Any) -> None:
    from conftest import build_tiny_model

    sampler = ModelSampler(build_tiny_model("llama", tiny_tokenizer, max_position_embeddings=60), tiny_tokenizer, 16)
    with pytest.raises(UsageError, match=r"^req-7: a prefill of .* pass the model's 60"):
        sampler.go_on([BegunAnswer("How?", (5,) * 60, "req-7\x1f60\x1f0")], GREEDY)


def test_where_trunks_cannot_be_shared_it_is_said_and_the_paths_are_the_same(
    local: ModelSampler, tiny_tokenizer: Any, capsys: pytest.CaptureFixture
) -> None:
    from conftest import build_tiny_model

    windowed = ModelSampler(build_tiny_model("mistral", tiny_tokenizer, sliding_window=16), tiny_tokenizer, 16)
    assert "prefixes cannot be shared" in capsys.readouterr().err
    assert len(windowed.go_on(_begun(tiny_tokenizer), GREEDY)) == 12
    apart = ModelSampler(local.model, tiny_tokenizer, 5, share_prefix=False)
    begun = _begun(tiny_tokenizer)
    assert apart.go_on(begun, GREEDY) == local.go_on(begun, GREEDY)
    assert isinstance(local.go_on(begun[:1], GREEDY)[0], Written)
    assert local.paths_written >= 13 and local.tokens_written > 0
    assert render_prompt(tiny_tokenizer, "How?")


# A real server


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve` with SmolLM2 on loopback; gives its base URL."""
    from course_correction.loading import resolve_model_name

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = resolve_model_name("smollm2-135m")
    log = tmp_path_factory.mktemp("serve") / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("transformers")), "serve", model, "--device", "cpu", "--dtype", "float32",
             "--host", "127.0.0.1", "--port", str(port)],
            stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                break
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_paths_and_groups_from_transformers_serve_are_those_of_the_model_here(
    transformers_serve: str, tmp_path: Path
) -> None:
    from c2_syn import SynthesisSettings, synthesize
    from course_correction.loading import resolve_model_name
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
