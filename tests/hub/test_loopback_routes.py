"""The loopback Hub asked without a client library: whole commits, uploads, what it holds and lists; and its command."""

import hashlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

from tests.loopback_hub.hub import LoopbackHub
from tests.support.fresh_hub import hub as hub
from tests.support.rows import ROOT


def ask(hub: LoopbackHub, route: str, content: bytes = b"", token: str = "hf_loopback_me") -> tuple[int, Any]:
    """Send `METHOD /path` without a client library and return the status and the JSON answer."""
    method, path = route.split()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(hub.url + path, content or None, headers, method=method)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def commit_lines(*operations: tuple[str, dict[str, Any]]) -> bytes:
    header = ("header", {"summary": "Change"})
    return b"".join(json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in (header, *operations))


def test_a_commit_makes_all_of_its_changes_or_none(hub):
    ask(hub, "POST /api/repos/create", b'{"name": "model", "type": "model"}')
    before = hub.commits("model", "me/model")
    good = ("file", {"path": "a.txt", "content": "YQ==", "encoding": "base64"})
    bad_operations = [
        ("deletedFile", {"path": "none.txt"}),
        ("lfsFile", {"path": "b.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}),
        ("file", {"path": "../b.txt", "content": "YQ==", "encoding": "base64"}),
        ("file", {"path": "b.txt", "content": "no base64!", "encoding": "base64"}),
        ("unheard", {"path": "b.txt"}),
    ]
    for bad in bad_operations:
        assert ask(hub, "POST /api/models/me/model/commit/main", commit_lines(good, bad))[0] in (400, 404)
        assert hub.commits("model", "me/model") == before
    assert ask(hub, "POST /api/models/me/model/commit/main", commit_lines(good))[0] == 200
    assert ask(hub, "POST /api/models/me/model/commit/main", commit_lines())[0] == 200
    assert hub.files("model", "me/model")["a.txt"] == b"a"
    assert len(hub.commits("model", "me/model")) == len(before) + 2


def test_an_upload_whose_hash_or_announcement_is_wrong_is_refused(hub):
    ask(hub, "POST /api/repos/create", b'{"name": "model", "type": "model"}')
    content = b"weights"
    oid = hashlib.sha256(content).hexdigest()
    upload = f"PUT /lfs-upload/{oid}?size={len(content)}"
    assert ask(hub, upload, content)[0] == 403
    batch = json.dumps({"operation": "upload", "objects": [{"oid": oid, "size": len(content)}]}).encode()
    status, results = ask(hub, "POST /me/model.git/info/lfs/objects/batch", batch)
    assert status == 200
    assert results["objects"][0]["actions"]["upload"]["href"] == hub.url + upload.split()[1]
    assert ask(hub, upload, b"Weights")[0] == 400
    assert ask(hub, upload, content, token="")[0] == 200
    assert "actions" not in ask(hub, "POST /me/model.git/info/lfs/objects/batch", batch)[1]["objects"][0]


def test_everything_holds_what_was_sent_but_no_token(hub):
    ask(hub, "POST /api/repos/create", b'{"name": "model", "type": "model"}')
    secret = ("file", {"path": "a.txt", "content": "c2VjcmV0", "encoding": "base64"})
    ask(hub, "POST /api/models/me/model/commit/main?why=because", commit_lines(secret))
    ask(hub, "POST /api/models/me/none/commit/main", commit_lines(secret))
    held = b"\n".join(name.encode() + b"\n" + content for name, content in hub.everything())
    assert all(text in held for text in (b"secret", b"why=because", b"Python-urllib", b'"summary": "Change"', b"filter=lfs"))
    assert held.count(b"secret") == 3
    assert b"hf_loopback_me" not in held


def test_an_unknown_route_is_named_and_listed(hub):
    status, results = ask(hub, "GET /api/models/me/model/likers")
    assert status == 404
    assert "GET /api/models/me/model/likers" in results["error"]
    assert hub.unknown == ["GET /api/models/me/model/likers"] == hub.requests


def test_a_hub_started_by_hand_says_what_to_export_and_keeps_its_repositories(tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        ask(hub, "POST /api/repos/create", b'{"name": "model", "type": "model"}')
        files = hub.files("model", "me/model")
    command = [sys.executable, "-m", "tests.loopback_hub", "--folder", str(tmp_path / "hub"), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as served:
        lines = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(served.stdout.readline())
        exported = dict(line.split()[1].split("=") for line in lines if line.startswith("export "))
        assert exported["HF_TOKEN"] == "hf_loopback_me"
        with urllib.request.urlopen(f"{exported['HF_ENDPOINT']}/me/model/resolve/main/.gitattributes") as response:
            assert response.read() == files[".gitattributes"]
        # Not Ctrl-C: a process started in the background by a script ignores that.
        served.terminate()
        try:
            assert served.wait(10) == 0
        finally:
            served.kill()
