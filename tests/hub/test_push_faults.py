"""Pushes under faults, repeated pushes and private content: the data on the Hub stay whole."""

import pytest

from tests.support.fresh_hub import hub as hub
from tests.support.fresh_hub import machine as machine
from tests.support.hub import assert_nothing_private

# Waiting would only make these tests slow.
IMPATIENT = (
    "import course_correction.hub.push as publishing, huggingface_hub.utils._http as http, time\n"
    "time.sleep = lambda seconds: waits.append(seconds)\nwaits = []\n"
    "from pathlib import Path\nfrom course_correction.base.errors import UsageError\n"
)

FAULTS = {
    "busy": {"route": "POST .*/commit/", "status": 429, "headers": {"Retry-After": "7"}, "times": 2},
    "broken": {"route": "POST .*/commit/", "status": 500, "times": 3},
    "cut in a commit": {"route": "POST .*/commit/", "cut": True},
    "cut in an upload": {"route": "PUT ", "cut": True, "times": 2},
    "unavailable at first": {"route": "GET .*whoami", "status": 503},
    "an upload refused once": {"route": "POST .*/lfs/objects/batch", "status": 500, "times": 2},
}
PUSH = (
    IMPATIENT
    + """
folder = Path("data"); (folder / "pairs").mkdir(parents=True, exist_ok=True)
(folder / "README.md").write_text("---\\nconfigs: []\\n---\\n")
(folder / "pairs/train-00000-of-00001.parquet").write_bytes(bytes(range(256)) * 4000 + {mark!r})
try:
    repo = publishing.open_repo("me/x", "dataset")
    publishing.push_dataset(repo, folder, ["pairs"])
    answer = {{"waits": waits}}
except UsageError as error:
    answer = {{"error": str(error)}}
"""
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_push_survives_a_passing_fault(hub, machine, fault):
    hub.fail(**FAULTS[fault])
    answer = machine.python(PUSH.format(mark=b"1"))
    assert "error" not in answer, answer
    if fault == "busy":
        assert answer["waits"] and max(answer["waits"]) == 7
    files = hub.files("dataset", "me/x")
    assert files["pairs/train-00000-of-00001.parquet"].endswith(b"1") and "README.md" in files


@pytest.mark.parametrize("fault", [{"route": "POST .*/commit/", "status": 500}, {"route": "PUT ", "cut": True}])
def test_a_failed_push_leaves_the_old_data_whole_and_can_be_repeated(hub, machine, fault):
    machine.python(PUSH.format(mark=b"old"))
    before = hub.files("dataset", "me/x")
    hub.fail(**fault, times=1000)
    answer = machine.python(PUSH.format(mark=b"new"))
    assert "Run the same command again" in answer["error"]
    assert hub.files("dataset", "me/x") == before
    hub.mend()
    assert "error" not in machine.python(PUSH.format(mark=b"new"))
    assert hub.files("dataset", "me/x")["pairs/train-00000-of-00001.parquet"].endswith(b"new")


def test_a_repeated_push_makes_no_commit_and_one_with_fewer_shards_deletes_the_old_ones(hub, machine):
    code = (
        IMPATIENT
        + """
def fill(count):
    folder = Path(f"data{count}"); (folder / "pairs").mkdir(parents=True)
    (folder / "README.md").write_text("card")
    for index in range(count):
        (folder / f"pairs/train-{index:05d}-of-{count:05d}.parquet").write_bytes(bytes([index]) * 1000)
    return folder
repo = publishing.open_repo("me/x", "dataset")
three, one = fill(3), fill(1)
publishing.push_dataset(repo, three, ["pairs"])
publishing.push_dataset(repo, three, ["pairs"])
publishing.push_dataset(repo, one, ["pairs"])
answer = 0
"""
    )
    machine.python(code)
    assert sorted(hub.files("dataset", "me/x")) == [".gitattributes", "README.md", "pairs/train-00000-of-00001.parquet"]
    assert len(hub.commits("dataset", "me/x")) == 3


def test_a_file_that_contains_something_private_aborts_the_whole_push(hub, machine):
    code = (
        IMPATIENT
        + """
answer = []
repo = publishing.open_repo("me/x", "dataset")
for text in ("key hf_loopback_me", f"see {Path.cwd()}/notes", f"from {Path.home()}"):
    Path("notes.txt").write_text("x" * 3000000 + text)
    try:
        publishing.push(repo, {"a.txt": b"fine", "notes.txt": Path("notes.txt")}, "x")
    except UsageError as error:
        answer.append(str(error))
"""
    )
    errors = machine.python(code)
    kinds = ("a Hub token", "a local path", "a local path")
    assert errors == [f"Push aborted: notes.txt contains {kind}. Remove it and push again." for kind in kinds]
    assert sorted(hub.files("dataset", "me/x")) == [".gitattributes"]
    assert_nothing_private(hub)
