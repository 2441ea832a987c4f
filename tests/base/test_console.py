"""Laws of what a script shows: one line for an error that a user can fix, and progress that a log can hold."""

import errno
import io
import logging
import subprocess
import sys

import pytest

from course_correction.base.console import configure_logging, progress_bar, run_script, show_speed
from course_correction.base.errors import UsageError
from tests.support.rows import ROOT


def _failing_with(error: BaseException) -> None:
    def main() -> None:
        raise error

    run_script(main)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("k is 0,\nbut must be\tat least 1."), "error: k is 0, but must be at least 1.\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            "error: No space left on device (runs/x). Free some space. Finished work is kept. "
            "Run the same command again to resume.\n",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
            "error: No such file or directory (x). Finished work is kept. Run the same command again to resume.\n",
        ),
    ],
)
def test_an_error_that_a_user_can_fix_is_one_line_and_status_two(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        _failing_with(error)
    assert caught.value.code == 2 and capsys.readouterr().err == line


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("no number")])
def test_any_other_error_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        _failing_with(error)


INTERRUPTED = """
from course_correction.base.console import run_script
def main():
    print("a table")
    raise KeyboardInterrupt
run_script(main)
"""


def test_ctrl_c_is_one_line_and_status_130_and_loses_no_output() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (130, "a table\n")
    assert done.stderr == "error: Stopped. Finished work is kept. Run the same command again to resume.\n"


def test_a_script_says_how_it_is_resumed_after_ctrl_c() -> None:
    program = INTERRUPTED.replace("run_script(main)", "run_script(main, resume='Add --again.')")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stderr == "error: Stopped. Finished work is kept. Add --again.\n"


def test_progress_in_a_log_is_a_line_every_thirty_seconds_and_one_at_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    clock = [0.0]
    with monkeypatch.context() as patch:
        patch.setattr("tqdm.std.time", lambda: clock[0])
        bar = progress_bar("sampling", total=12, done=2)
        for number, seconds in enumerate((1, 40, 50, 80, 100), 1):
            clock[0] = seconds
            show_speed(bar, paths=20 * number, tokens=400 * number)
            bar.update(2)
        bar.close()
    assert caplog.messages == [
        "sampling: 2 of 12 requests, ? left",
        "sampling: 6 of 12 requests, 1.0 paths/s, 20 tokens/s, 01:00 left",
        "sampling: 10 of 12 requests, 1.0 paths/s, 20 tokens/s, 00:20 left",
        "sampling: 12 of 12 requests, 1.0 paths/s, 20 tokens/s, 00:00 left",
    ]


def test_a_process_that_is_not_the_main_one_shows_no_progress(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    with progress_bar("sampling", total=1, quiet=True) as bar:
        show_speed(bar, 1, 1)
        bar.update(1)
    assert caplog.text == "" and capsys.readouterr().err == ""


def test_messages_go_to_the_stderr_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logging()
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    logging.getLogger("course_correction.x").info("one")
    first_text = first.getvalue()
    # As pytest and notebooks do.
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    logging.getLogger("course_correction.x").info("two")
    assert (first_text, second.getvalue()) == ("one\n", "two\n")


def test_the_last_line_of_progress_stands_once_in_a_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with progress_bar("sampling", 2) as bar:
        clock[0] = 40.0
        bar.update(2)
    assert caplog.messages[1:] == ["sampling: 2 of 2 requests, 00:00 left"]
