"""What the tests of sampling share: prefills, a server with chosen faults, and `transformers serve`."""

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

from course_correction.generation import openai_client
from course_correction.generation.chat_format import encode_answer
from course_correction.generation.decoding import continue_prefills
from course_correction.generation.offline_models import resolve_model_name
from course_correction.generation.openai_client import Server
from course_correction.generation.protocol import Prefill, SamplingSettings, Tokenizer
from course_correction.generation.samplers import ModelSampler
from course_correction.generation.server_sampler import ServerSampler
from tests.support.rows import read_data

REQUEST = read_data("requests_eval")[0]["request"]
ANSWER = read_data("requests_eval")[0]["full_harmful_response"]
GREEDY = SamplingSettings(max_new_tokens=6, temperature=0)


class Scripted:
    """A completions server in this process around a tiny model, with chosen faults.

    Attributes:
        calls: The requests that came, in order.
        most_at_once: The largest number of requests in progress together.
        fault: Returns for the number of a call None, or its fault.
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
        """Answer as such servers do; None for status 400."""
        tokenizer, prompt = self.sampler.tokenizer, asked["prompt"]
        if not isinstance(prompt, str) and not self.takes_ids:
            return None
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] if isinstance(prompt, str) else prompt
        if isinstance(prompt, str) and self.adds_bos:
            ids = [tokenizer.bos_token_id, *ids]
        count = asked.get("n", 1) if self.gives_many else 1
        settings = SamplingSettings(asked["max_tokens"], asked.get("temperature", 1), asked.get("top_p", 1))
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


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    shorten_pauses(monkeypatch)


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the openai client and ours try again at once."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(openai_client, "FIRST_PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def tiny_sampler(tiny_llama: Any, tiny_tokenizer: Any) -> ModelSampler:
    return ModelSampler(tiny_llama, tiny_tokenizer, batch_size=16)


def make_prefills(tokenizer: Tokenizer, requests: int = 3, paths: int = 2) -> list[Prefill]:
    return [
        Prefill(row["request"], tuple(encode_answer(tokenizer, row["full_harmful_response"])[:k]), f"{number} {k} {path}")
        for number, row in enumerate(read_data("requests_eval")[:requests])
        for k in (5, 12)
        for path in range(paths)
    ]


def server_sampler(url: str, tokenizer: Tokenizer, **limits: Any) -> ServerSampler:
    return ServerSampler(Server(url, "sampling", "--server_url", **{"timeout_s": 10} | limits), "m", tokenizer)


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve` with SmolLM2 on loopback; gives its base URL."""
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
