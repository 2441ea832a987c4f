"""A small Hugging Face Hub on 127.0.0.1, for the real clients over real HTTP. Keeps everything in one folder.

In tests: `with LoopbackHub(folder) as hub`, then a subprocess with `hub.environment(home)`, as `HF_*` are read at import.
By hand: `python -m tests.loopback_hub --folder runs/hub --port 8899` prints what to export.
"""

import argparse
import base64
import json
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.loopback_hub.api import Api
from tests.loopback_hub.records import ORGANISATION, Repo
from tests.loopback_hub.repos import Repositories
from tests.loopback_hub.requests import Answer, Body
from tests.loopback_hub.server import Handler, Server

CACHES = {
    "HF_HUB_CACHE": "hub",
    "HF_DATASETS_CACHE": "datasets",
    "HF_MODULES_CACHE": "modules",
    "HF_EVALUATE_CACHE": "evaluate",
    "HF_METRICS_CACHE": "metrics",
    "HF_ASSETS_CACHE": "assets",
    "HF_XET_CACHE": "xet",
    "HF_TOKEN_PATH": "token",
}
SWITCHES = {
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "HF_HUB_OFFLINE": "0",
    "HF_DATASETS_OFFLINE": "0",
    "HF_EVALUATE_OFFLINE": "0",
    "TRANSFORMERS_OFFLINE": "0",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


@dataclass
class Fault:
    """An answer that is due instead of the real one: to `times` requests, after `after` of them."""

    route: re.Pattern[str]
    status: int
    times: int
    after: int
    headers: dict[str, str]
    cut: bool


class LoopbackHub:
    """A Hub that serves while it is entered.

    Attributes:
        url: Where it serves.
        requests: The method and path of each request so far.
        unknown: Those of them that met no route, and were answered 404.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        """Open the repositories of a folder, and a port of 127.0.0.1; 0 takes a free one."""
        self.folder = folder.resolve()
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.repositories = Repositories(self.folder)
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        self._records: list[tuple[str, Body | None]] = []
        shutil.rmtree(self.folder / "requests", ignore_errors=True)
        (self.folder / "requests").mkdir()
        self._server = Server(("127.0.0.1", port), Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._api = Api(self.repositories, self.url)

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str = "hf_loopback_me") -> dict[str, str]:
        """Return what a subprocess needs on top of the environment; an empty token asks as nobody."""
        caches = {name: str(home / below) for name, below in CACHES.items()}
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": token, "HF_HOME": str(home), **SWITCHES, **caches}

    def fail(
        self,
        route: str,
        status: int = 500,
        times: int = 1,
        after: int = 0,
        headers: dict[str, str] | None = None,
        cut: bool = False,
    ) -> None:
        """Let requests fail whose method and path match a pattern, before they change anything.

        Args:
            route: A regular expression searched for in `METHOD /path`.
            status: What they are answered.
            times: How many fail.
            after: How many pass before.
            headers: Sent along, such as Retry-After.
            cut: Close the connection instead, halfway through the request's body; of a GET, through the answer's.
        """
        with self.lock:
            self._faults.append(Fault(re.compile(route), status, times, after, headers or {}, cut))

    def mend(self) -> None:
        """Remove every fault that `fail` has set."""
        with self.lock:
            self._faults.clear()

    def files(self, repo_type: str, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the content of each file of a revision."""
        entries = self._repo(repo_type, repo_id).head(revision).files
        return {path: self.repositories.blob(entry.sha256).read_bytes() for path, entry in sorted(entries.items())}

    def commits(self, repo_type: str, repo_id: str, revision: str = "main") -> list[tuple[str, str]]:
        """Return ids and titles, newest first."""
        repo = self._repo(repo_type, repo_id)
        return [(commit.id, commit.title) for commit in repo.history(repo.head(revision))]

    def repo(self, repo_type: str, repo_id: str) -> dict[str, Any]:
        """Return a repository's settings and discussions; `base` of a pull request is such as refs/heads/main."""
        repo = self._repo(repo_type, repo_id)
        settings = {name: getattr(repo, name) for name in ("id", "private", "gated", "sdk", "branches", "tags")}
        return settings | {"discussions": [dict(discussion) for discussion in repo.discussions]}

    def _repo(self, repo_type: str, repo_id: str) -> Repo:
        repo = self.repositories.get(repo_type, repo_id)
        if repo is None:
            raise KeyError(
                f"There is no {repo_type} {repo_id!r} on this hub, only {[r.id for r in self.repositories.all()]}."
            )
        return repo

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """Yield a name and every byte that was sent and kept, for a search; no Authorization header.

        These are each request's line with its User-Agent and body, what is base64 in bodies in clear, and all blobs.
        """
        for name, body in list(self._records):
            content = body.path.read_bytes() if body else b""
            yield name, name.encode() + b"\n" + content
            yield from ((f"{name} (decoded)", clear) for clear in _decoded(content))
        names: dict[str, str] = {}
        for repo in self.repositories.all():
            for commit in repo.commits.values():
                for path, entry in commit.files.items():
                    names.setdefault(entry.sha256, f"{repo.kind} {repo.id}: {path}")
        for blob in sorted((self.folder / "blobs").iterdir()):
            yield names.get(blob.name, f"blob {blob.name}"), blob.read_bytes()

    def record(self, line: str, target: str, agent: str) -> tuple[Fault | None, Path]:
        """Note a request before its body; return the fault that is due, and where the body goes."""
        with self.lock:
            self.requests.append(line)
            self._records.append((f"{line.split()[0]} {target}\nUser-Agent: {agent}", None))
            path = self.folder / "requests" / f"{len(self._records):06d}"
            for fault in self._faults:
                if fault.times > 0 and fault.route.search(line):
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault, path
        return None, path

    def record_body(self, body: Body) -> None:
        """Note the body of the request that `record` gave this path; a blob's is kept among the blobs."""
        with self.lock:
            number = int(body.path.name) - 1
            self._records[number] = (self._records[number][0], body)

    def answer(self, line: str, query: str, authorization: str | None, body: Body) -> Answer:
        """Do what a request asks, one at a time."""
        with self.lock:
            answer = self._api.answer(line, query, authorization, body)
            if answer is None:
                self.unknown.append(line)
                message = f"The loopback hub has no route {line}"
                answer = Answer(404, {"error": message}, {"X-Error-Message": message})
        return answer


def _decoded(content: bytes) -> Iterator[bytes]:
    """Yield what is base64 under the keys content and sample of a body of JSON lines."""
    for line in content.splitlines():
        with suppress(ValueError, AttributeError, TypeError):
            value = json.loads(line)
            for holder in (value.get("value", {}), *value.get("files", [])):
                for key in {"content", "sample"} & set(holder):
                    with suppress(ValueError):
                        yield base64.b64decode(holder[key], validate=True)


def main() -> None:
    """Serve a folder until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/hub"), help="where the repositories are kept")
    parser.add_argument("--port", type=int, default=8899)
    arguments = parser.parse_args()
    try:
        hub = LoopbackHub(arguments.folder, arguments.port)
    except OSError as error:
        parser.error(f"cannot serve {arguments.folder} on port {arguments.port}: {error}. Pass another --folder or --port.")
    with hub, suppress(KeyboardInterrupt):
        print(f"A loopback Hub serves {arguments.folder} as user me of the organisation {ORGANISATION}. Elsewhere:\n")
        variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_loopback_me", "HF_HUB_DISABLE_XET": "1"}
        for name, value in {**variables, "HF_HOME": str(arguments.folder / "home")}.items():
            print(f"export {name}={value}")
        print("\nCtrl-C stops it; its repositories stay.", flush=True)
        threading.Event().wait()
