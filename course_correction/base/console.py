"""What a script shows: messages, progress, one-line errors."""

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from course_correction.base.errors import UsageError

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

_RESUME = "Run the same command again to resume."
_INTERRUPTED = 130
_SECONDS_BETWEEN_LOG_LINES = 30


def run_script(main: Callable[[], None], resume: str = _RESUME) -> None:
    """Run a script's main: an error that a user can fix ends in one line on stderr and a non-zero exit status.

    Args:
        main: What the script does.
        resume: How to go on after an interruption.
    """
    configure_logging()
    try:
        main()
    except UsageError as error:
        _exit_with(str(error), 2)
    except KeyboardInterrupt:
        _exit_with(f"Stopped. Finished work is kept. {resume}", _INTERRUPTED)
    except OSError as error:
        if error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        where += ". Free some space" if error.errno == errno.ENOSPC else ""
        _exit_with(f"{error.strerror}{where}. Finished work is kept. {resume}", 2)


def _exit_with(message: str, status: int) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    # Threads of the libraries must not hold the process, or print a traceback after the error.
    sys.stdout.flush()
    if status == _INTERRUPTED:
        os._exit(status)
    sys.exit(status)


class _StderrHandler(logging.StreamHandler):
    """Writes to the `sys.stderr` of the moment: a notebook or a test replaces it, and may close the one before."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def configure_logging() -> None:
    """Show the package's messages as plain lines on stderr. For scripts: a library leaves this to its user."""
    logger = logging.getLogger("course_correction")
    if not logger.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)


class _LogLines:
    """A file for tqdm whose lines are messages of the log. tqdm writes the last line again when it closes."""

    _last = ""

    def write(self, text: str) -> None:
        if text.strip() and text.strip() != self._last:
            self._last = text.strip()
            logger.info(self._last)

    def flush(self) -> None:
        pass


def progress_bar(label: str, total: int, done: int = 0, quiet: bool = False) -> "tqdm":
    """Return a bar of requests: drawn on a terminal, a line every 30 seconds in a log.

    Args:
        label: Name of the work.
        total: Number of requests.
        done: How many of them an earlier run has finished.
        quiet: Show nothing, in a process that is not the main one.
    """
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(total=total, initial=done, desc=label, unit="request", mininterval=1, disable=quiet)
    return tqdm(
        total=total,
        initial=done,
        desc=label,
        file=_LogLines(),
        mininterval=_SECONDS_BETWEEN_LOG_LINES,
        miniters=1,
        bar_format="{desc}: {n_fmt} of {total_fmt} requests{postfix}, {remaining} left",
        disable=quiet,
    )


def show_speed(bar: "tqdm", paths: int, tokens: int) -> None:
    """Show with the next update how many paths and tokens were sampled per second since the bar began."""
    seconds = max(bar.format_dict["elapsed"], 1e-9)
    bar.set_postfix_str(f"{paths / seconds:.1f} paths/s, {tokens / seconds:.0f} tokens/s", refresh=False)
