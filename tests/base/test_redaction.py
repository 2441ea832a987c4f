"""What a push may not contain: paths of this machine, but not words that are also the name of a folder."""

from pathlib import Path

import pytest

from course_correction.base import redaction
from course_correction.base.errors import UsageError
from course_correction.base.redaction import check_nothing_private


@pytest.fixture(params=["/workspace", "/content", "/projects"])
def working_folder(request, monkeypatch):
    """Let the process run in a folder of one word, which holds `runs`."""
    folder = Path(request.param)
    monkeypatch.setattr(redaction.Path, "cwd", classmethod(lambda cls: folder))
    listed = redaction.os.listdir
    monkeypatch.setattr(
        redaction.os, "listdir", lambda path: ["runs", "course_correction"] if path == folder else listed(path)
    )
    return folder


def test_a_vocabulary_that_holds_the_name_of_the_working_folder_is_pushed(working_folder):
    check_nothing_private({"tokenizer.json": f'{{"{working_folder}": 12, "Ġ{working_folder}/": 13}}'.encode()})


def test_a_path_into_the_working_folder_is_refused(working_folder):
    with pytest.raises(UsageError, match=r"config\.json contains a local path"):
        check_nothing_private({"config.json": f'{{"base": "{working_folder}/runs/dpo"}}'.encode()})


def test_a_folder_of_several_words_is_refused_by_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="contains a local path"):
        check_nothing_private({"README.md": f"Trained in {tmp_path}.".encode()})


def test_the_root_folder_is_no_path_to_look_for(monkeypatch):
    monkeypatch.chdir("/")
    check_nothing_private({"README.md": b"usr/bin, /tmp and /"})
