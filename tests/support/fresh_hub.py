"""A loopback Hub of its own for each test: clients in subprocesses, and machines that push to it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.loopback_hub.hub import LoopbackHub
from tests.support.hub import Machine

PRELUDE = """
import json, sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

def caught(action, *arguments, **options):
    try:
        action(*arguments, **options)
    except Exception as error:
        response = getattr(error, "response", None)
        return [type(error).__name__, response.status_code if response is not None else None]

api = HfApi()
other, reader, expired, nobody = (
    HfApi(token=token) for token in ("hf_loopback_other", "hf_loopback_reader", "hf_loopback_expired", False)
)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub") as serving:
        yield serving


@pytest.fixture
def run(tmp_path: Path, hub: LoopbackHub) -> Callable[..., Any]:
    """Run Python in a subprocess as a client of the hub; return what it `print`s last, read as JSON."""

    def run_snippet(snippet: str, *arguments: object, home: str = "home", token: str = "hf_loopback_me") -> Any:
        environment = {**os.environ, **hub.environment(tmp_path / home, token), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + dedent(snippet), *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run_snippet


@pytest.fixture
def machine(hub, tmp_path):
    return Machine(hub, tmp_path / "first")


@pytest.fixture
def other_machine(hub, tmp_path):
    return Machine(hub, tmp_path / "second")
