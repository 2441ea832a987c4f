"""A scripted server of chat completions, a judge that calls it, and paths to judge."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from course_correction.judges.protocol import JudgedPath
from course_correction.judges.server import OpenAIJudge
from tests.support.server import shorten_pauses

Reply = tuple[int, Any]


@contextmanager
def chat_server(reply: Callable[[int, dict[str, Any]], Reply]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve chat completions: `reply(number of the call, request)` gives the status and the answer or the error."""
    requests: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request["authorization"] = self.headers["Authorization"]
            with lock:
                requests.append(request)
                number = len(requests)
            status, answer = reply(number, request)
            body = answer
            if isinstance(answer, str) and status == 200:
                message = {"role": "assistant", "content": answer}
                body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
                body["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CORRECTION_CACHE", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    shorten_pauses(monkeypatch)


def make_openai_judge(base_url: str, **settings: Any) -> OpenAIJudge:
    return OpenAIJudge("m", base_url, **({"timeout_s": 10, "max_retries": 2} | settings))


def sample_paths(*continuations: str) -> list[JudgedPath]:
    return [JudgedPath("How do I skip the queue?", "Walk up and", text) for text in continuations]
