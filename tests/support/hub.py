"""What the tests of pushing share: scripts and snippets that talk to a loopback Hub as another user's machine would."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback_hub.hub import LoopbackHub

ROOT = Path(__file__).resolve().parents[2]
TELLTALE = "quagga7"  # Stands in the home folder, the user's name and every local path; must stand in nothing pushed.


class Machine:
    """A machine with a home of its own, from which scripts push to the Hub and load from it."""

    def __init__(self, hub: LoopbackHub, folder: Path) -> None:
        self.hub = hub
        self.folder = folder / TELLTALE
        self.folder.mkdir(parents=True, exist_ok=True)

    def environment(self, token: str | None = "hf_loopback_me") -> dict[str, str]:
        """Return what its processes see; no token where that is None."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OPENAI"))}
        variables |= self.hub.environment(home / "hf", token or "none")
        variables |= {
            "HOME": str(home),
            "USER": TELLTALE,
            "LOGNAME": TELLTALE,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        if token is None:
            del variables["HF_TOKEN"]
        return variables

    def script(self, name: str, *arguments: Any, token: str | None = "hf_loopback_me", fails: bool = False) -> str:
        """Run one of the project's scripts in its folder; return its output, or its stderr if it `fails`."""
        words = ["-m", name] if "." in name and not name.endswith(".py") else [str(ROOT / name)]
        result = self._run([*words, *map(str, arguments)], token)
        assert (result.returncode != 0) == fails, result.stdout + result.stderr
        return result.stderr if fails else result.stdout + result.stderr

    def python(self, code: str, token: str | None = "hf_loopback_me", prelude: str = "") -> Any:
        """Run Python in a fresh process and return the value that it gives to `answer`, which must fit into JSON."""
        # Streaming leaves threads of the libraries behind, which now and then abort the interpreter's end.
        end = "\nimport json, os\nprint('\\x00' + json.dumps(answer), flush=True)\nos._exit(0)"
        result = self._run(["-c", prelude + code + end], token)
        assert result.returncode == 0, result.stdout + result.stderr
        return json.loads(result.stdout.split("\x00")[-1])

    def _run(self, words: list[str], token: str | None) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment(token),
            capture_output=True,
            text=True,
            timeout=280,
        )


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """A Hub that the tests of a module share."""
    with LoopbackHub(tmp_path_factory.mktemp("hub") / "hub") as running:
        yield running


@pytest.fixture(scope="module")
def machine(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The machine that pushes to it."""
    return Machine(hub, tmp_path_factory.mktemp("machine"))


def assert_nothing_private(hub: LoopbackHub, *secrets: str) -> None:
    """Search every byte that the Hub was sent for the machine's paths, user, name and tokens."""
    host = socket.gethostname()
    searched = [TELLTALE, str(ROOT), "hf_loopback_me", *secrets, *([host] if len(host) >= 8 else [])]
    for name, content in hub.everything():
        for text in searched:
            assert text.encode() not in content, f"{text} stands in {name}"
