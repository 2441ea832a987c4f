"""Attack prompts: read and pinned, wherever they are, and the mild rows. All texts are mild imitations."""

import contextlib
import hashlib
import io
import json
import re
import types
import urllib.error
import urllib.request
from collections import Counter

import pytest

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl
from course_correction.suites.attack_prompts import MILD_FILE, index_prompts, read_attack_prompts
from course_correction.suites.ciphers import CIPHERS
from tests.support.jailbreak import MARK, REQUEST, artifact, plain, read, write
from tests.support.jailbreak import own_cache as own_cache
from tests.support.rows import read_data, write_rows

COMMIT = "0123456789abcdef0123456789abcdef01234567"
URL = f"https://raw.githubusercontent.com/owner/name/{COMMIT}/attack-artifacts/PAIR/black_box/model.json"


# --- Formats ----------------------------------------------------------------------------------------------------------


def test_an_artifact_of_jailbreakbench_gives_goals_as_behaviours_and_keeps_null_prompts(tmp_path):
    one, two = read(write(tmp_path / "x.json", artifact("zxq ! !", None)))
    assert (one.attack, one.behavior_id, one.behavior, one.category) == ("GCG", "Queue 0", f"{REQUEST} (0)", "Petty")
    assert (one.prompt, one.cipher, two.prompt) == ("zxq ! !", None, None)


def test_an_artifact_that_does_not_name_its_method_is_named_by_its_folder(tmp_path):
    file = write(tmp_path / "attack-artifacts/PAIR/black_box/model.json", artifact("zxq", method=None))
    assert [row.attack for row in read(file)] == ["PAIR"]
    assert [row.attack for row in read(f"Mine={file}")] == ["Mine"]


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("results/AutoDAN/llama2/test_cases/test_cases.json", "AutoDAN"),
        ("GCG/test_cases.json", "GCG"),
        ("somewhere/PEZ.json", "PEZ"),
    ],
)
def test_test_cases_of_harmbench_are_named_by_file_or_folder(place, name, tmp_path):
    rows = read(write(tmp_path / place, {"queue_id": ["zxq one", "zxq two"], "bus_id": []}))
    assert [(row.attack, row.behavior_id, row.prompt) for row in rows] == [
        (name, "queue_id", "zxq one"), (name, "queue_id", "zxq two"), (name, "bus_id", None),
    ]  # fmt: skip
    assert {row.behavior for row in rows} == {None}


def test_a_table_of_behaviours_gives_harmbench_ids_their_texts(tmp_path):
    cases = write(tmp_path / "GCG.json", {"queue_id": ["zxq"], "bus_id": ["zxq"]})
    table = tmp_path / "behaviors.csv"
    table.write_text(f'Behavior,FunctionalCategory,BehaviorID\n"{REQUEST}, please",standard,queue_id\n', encoding="utf-8")
    assert [row.behavior for row in read(table, cases)] == [f"{REQUEST}, please", None]
    with pytest.raises(UsageError, match="tables of behaviours only"):
        read(table)
    table.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UsageError, match="columns Behavior and BehaviorID"):
        read(table, cases)


def test_plain_rows_may_lack_id_and_category_and_the_first_n_of_each_attack_are_kept(tmp_path):
    rows = [plain(), plain(prompt="zxq", behavior_id="b", category="c"), plain(prompt=None), plain(attack="PAIR")]
    file = write_rows(tmp_path / "x.jsonl", rows)
    prompts = read(file)
    assert MARK not in prompts[0].behavior_id and prompts[0].behavior_id == prompts[2].behavior_id
    assert (prompts[1].behavior_id, prompts[1].category, prompts[2].prompt) == ("b", "c", None)
    assert Counter(row.attack for row in read(file, first=2)) == {"GCG": 2, "PAIR": 1}


def test_a_behaviour_that_returns_keeps_all_its_prompts_each_with_a_number_and_an_id_of_its_own(tmp_path):
    file = write_rows(tmp_path / "x.jsonl", [plain(), plain(), plain(prompt="zxq"), plain(attack="PAIR")])
    indexed = index_prompts(read(file))
    assert [number for _, number, _ in indexed] == [0, 1, 2, 0]
    assert len({request_id for request_id, _, _ in indexed}) == 4
    assert all(re.fullmatch(r"(gcg|pair)-[0-9a-f]{16}", request_id) for request_id, _, _ in indexed)
    assert indexed == index_prompts(read(file))


BROKEN = {
    "no such file": ("none.json", None, "There is no file"),
    "a list": ("x.json", [REQUEST], "the file is a list, not an object"),
    "no JSON": ("x.json", f'{{"{MARK}', "the file is not valid JSON"),
    "no UTF-8": ("x.json", b"\xff\xfe", "the file is not valid JSON"),
    "unknown keys": ("x.json", {"rows": 1, REQUEST: 2}, r"unknown format \(keys: rows, 1 others\)"),
    "nothing": ("x.json", {}, r"unknown format \(keys: none\)"),
    "no rows": ("x.json", {"parameters": {}, "jailbreaks": []}, "holds no prompt"),
    "no lines": ("x.jsonl", "\n", "holds no prompt"),
    "a null row": ("x.json", {"jailbreaks": [None]}, "row 1 is null"),
    "a null goal": ("x.json", {"jailbreaks": [{"goal": None, "prompt": MARK}]}, "row 1 has a null or empty goal"),
    "an empty prompt": ("x.json", {"jailbreaks": [{"goal": MARK, "prompt": " "}]}, "row 1 has a null or empty prompt"),
    "a picture": ("x.json", {"queue": [["a.png", MARK]]}, "row 1 has a null or empty prompt"),
    "half a character": ("x.json", {"queue": ["\ud800"]}, "row 1 has a null or empty prompt"),
    "a null line": ("x.jsonl", "null\n", "line 1 is null"),
    "a torn line": ("x.jsonl", json.dumps(plain()) + f'\n{{"prompt": "{MARK}', "line 2 is not valid JSON"),
    "other columns": (
        "x.jsonl",
        json.dumps({"goal": MARK}),
        r"row 1 has the keys goal; it needs attack, behavior and prompt",
    ),
    "an empty behaviour": ("x.jsonl", json.dumps(plain(behavior="")), "row 1 has a null or empty behavior"),
    "an unknown cipher": ("x.jsonl", json.dumps(plain(cipher=MARK)), "row 1 has an unknown cipher. Use caesar"),
    "no name": ("test_cases/test_cases.json", {"queue": ["zxq"]}, None),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_one_line_without_any_text(case, tmp_path, capfd):
    name, content, message = BROKEN[case]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes | str):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    elif content is not None:
        write(path, content)
    if message is None:
        # Two folders above stands a name that the test knows nothing of: it is taken.
        assert read(path)[0].attack == tmp_path.parent.name
        return
    with pytest.raises(UsageError, match=message) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert MARK not in str(error.value) and MARK not in "".join(capfd.readouterr())


# --- Files elsewhere --------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """Answer every URL with an artifact; the list says which were asked for."""
    asked = []
    content = json.dumps(artifact("zxq", method=None)).encode()

    def urlopen(url, timeout):
        asked.append(url)
        if "gone" in url:
            raise urllib.error.URLError("no route")
        return contextlib.closing(io.BytesIO(content))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return types.SimpleNamespace(asked=asked, sha256=hashlib.sha256(content).hexdigest())


def test_a_url_is_fetched_once_into_the_cache_and_named_by_its_path(opened, tmp_path):
    for _ in range(2):
        assert [row.attack for row in read(f"{URL}#sha256={opened.sha256}")] == ["PAIR"]
    assert opened.asked == [URL]
    (cached,) = (tmp_path / "cache").rglob("*.json")
    assert hashlib.sha256(cached.read_bytes()).hexdigest() == opened.sha256


def test_a_damaged_file_in_the_cache_is_refused(opened, tmp_path):
    read(f"{URL}#sha256={opened.sha256}")
    (cached,) = (tmp_path / "cache").rglob("*.json")
    cached.write_text("{}")
    with pytest.raises(UsageError, match="does not have that checksum"):
        read(f"{URL}#sha256={opened.sha256}")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (URL.replace(COMMIT, "main") + "#sha256=" + "0" * 64, r"is not pinned \(revision main\)"),
        (URL, "has no checksum. Add #sha256="),
        (URL + "#sha256=12", "64 hexadecimal digits, this one has 2"),
        (f"https://elsewhere.org/{COMMIT}/x.json", "is not a raw file on GitHub"),
        (URL.replace("https", "http"), "is not a raw file on GitHub"),
        ("owner/name:PAIR/x.json", r"is not pinned \(revision missing\)"),
        ("NAME=owner/name:PAIR/x.json@v1", r"is not pinned \(revision v1\)"),
    ],
)
def test_a_file_on_the_network_must_be_pinned_and_is_not_downloaded_otherwise(entry, message, opened):
    with pytest.raises(UsageError, match=message) as error:
        read(entry)
    assert entry in str(error.value) and not opened.asked


def test_a_file_that_is_not_the_one_of_the_checksum_is_refused_and_not_kept(opened, tmp_path):
    with pytest.raises(UsageError, match=f"its sha256 is {opened.sha256}"):
        read(URL + "#sha256=" + "0" * 64)
    assert not list((tmp_path / "cache").rglob("*.json"))
    local = write(tmp_path / "GCG.json", {"queue": ["zxq"]})
    digest = hashlib.sha256(local.read_bytes()).hexdigest()
    assert read(f"{local}#sha256={digest.upper()}")[0].attack == "GCG"
    with pytest.raises(UsageError, match="does not have that checksum"):
        read(f"GCG={local}#sha256=" + "0" * 64)


def test_a_url_that_cannot_be_downloaded_is_one_line(opened):
    with pytest.raises(UsageError, match=r"cannot be fetched \(no route\). Fetch it by hand"):
        read(URL.replace("PAIR", "gone") + "#sha256=" + "0" * 64)


def test_a_file_of_a_hub_dataset_is_fetched_at_its_commit_once(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def hf_hub_download(repository, path, repo_type, revision):
        asked.append((repository, path, repo_type, revision))
        if "gone" in path:
            raise OSError(MARK)
        return str(write(tmp_path / "hub.json", {"queue": ["zxq"]}))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    for _ in range(2):
        assert read(f"owner/name:results/PEZ/m/test_cases/test_cases.json@{COMMIT}")[0].attack == "PEZ"
    assert asked == [("owner/name", "results/PEZ/m/test_cases/test_cases.json", "dataset", COMMIT)]
    with pytest.raises(UsageError, match="cannot be downloaded from the Hub: OSError") as error:
        read(f"owner/name:gone.json@{COMMIT}")
    assert MARK not in str(error.value)


# --- The project's own rows -------------------------------------------------------------------------------------------


def test_the_mild_rows_quote_held_out_requests_over_four_attacks():
    rows = list(read_jsonl(MILD_FILE))
    assert Counter(row["attack"] for row in rows) == {"GCG": 6, "PAIR": 6, "AutoDAN": 6, "CipherChat": 6}
    requests = {row["request_id"]: row for row in read_data("requests_eval")}
    for row in rows:
        assert list(row) == ["attack", "behavior_id", "category", "behavior", "prompt"]
        source = requests[row["behavior_id"]]
        assert (row["behavior"], row["category"]) == (source["request"], source["kind"])
        assert source["request"] in row["prompt"] and len(row["prompt"]) < 400
    assert len(read_attack_prompts([], ["caesar", "self_cipher"])) == 30
    assert len({request_id for request_id, _, _ in index_prompts(read_attack_prompts([], CIPHERS))}) == 42
