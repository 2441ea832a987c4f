"""What a script prints: messages, progress, one-line errors."""

import errno
import logging
import os
import sys
from collections.abc import Callable

from course_correction.base.errors import UsageError


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main: what a user can mend ends in one line on stderr and a non-zero exit status."""
    configure_logging()
    try:
        main()
    except UsageError as error:
        _exit_with(str(error), 2)
    except KeyboardInterrupt:
        _exit_with("Stopped. What is finished is kept; run the same command again to go on.", 130)
    except OSError as error:
        if error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        where += ". Free some space" if error.errno == errno.ENOSPC else ""
        _exit_with(f"{error.strerror}{where}. What is finished is kept; run the same command again to go on.", 2)


def _exit_with(message: str, status: int) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    # The error is out; threads of the libraries must not hold the process or print a traceback after it.
    sys.stdout.flush()
    os._exit(status) if status == 130 else sys.exit(status)


def configure_logging() -> None:
    """Show the package's messages as plain lines on stderr. For scripts: a library leaves this to its user."""
    logger = logging.getLogger("course_correction")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
