"""Progress of long work: a bar on a terminal, a line now and then in a log file."""

import logging
import sys
import time
from typing import Any

logger = logging.getLogger(__name__)


SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows how much is done, how fast, and the time left.

    Args:
        label: What is being done.
        total: Requests in all.
        done: Of them, by an earlier run.
        quiet: Show nothing: a process that is not the main one.
    """

    def __init__(self, label: str, total: int, done: int = 0, quiet: bool = False) -> None:
        """Draw the bar, where there is a terminal for it."""
        self.label, self.total, self.done, self.first = label, total, done, done
        self.start = self.said = time.monotonic()
        self.quiet, self.bar = quiet, None
        if not quiet and sys.stderr.isatty():
            from tqdm.auto import tqdm

            self.bar: Any = tqdm(total=total, initial=done, desc=label, unit="request", mininterval=1)

    def advance(self, requests: int, paths: int = 0, tokens: int = 0) -> None:
        """Move on.

        Args:
            requests: Finished now.
            paths: Completion since the start.
            tokens: Likewise.
        """
        self.done += requests
        now = time.monotonic()
        seconds = max(now - self.start, 1e-9)
        speed = f"{paths / seconds:.1f} paths/s, {tokens / seconds:.0f} tokens/s" if paths else ""
        if self.bar is not None:
            self.bar.set_postfix_str(speed, refresh=False)
            self.bar.update(requests)
        elif not self.quiet and (now - self.said > SECONDS_BETWEEN_LINES or self.done == self.total):
            self.said = now
            left = round(seconds / (self.done - self.first) * (self.total - self.done))
            parts = [
                f"{self.done} of {self.total} requests",
                speed,
                f"{left // 60}:{left % 60:02d} left" if left else "done",
            ]
            logger.info(f"{self.label}: " + ", ".join(part for part in parts if part))

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()
