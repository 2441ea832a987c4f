"""Calls to an OpenAI-compatible server: bounded, patient, and gentle when it is busy. Knows nothing of what is asked."""

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from course_correction.base.errors import UsageError

T = TypeVar("T")
_MENDABLE = ("insufficient_quota", "unsupported_parameter", "unsupported_value")  # Codes of errors not worth a retry.
_WORTH_A_RETRY = (408, 409, 429)
_LONGEST_WAIT_S = 120.0


class ServerError(Exception):
    """A call that failed for good; `reason` is short and holds none of the texts."""

    def __init__(self, reason: str) -> None:
        """Keep the reason."""
        super().__init__(reason)
        self.reason = reason


class Server:
    """A client that retries and adapts. The key comes from OPENAI_API_KEY only.

    At most `max_parallel` calls run at once. After 429, 5xx, a lost connection or a timeout half as many may, and with
    every success a little more; the call is tried again `max_retries` times, the first after `backoff_s` seconds, each
    next one after twice as long, or after what Retry-After says.

    Args:
        base_url: Such as http://localhost:8000/v1; None is OpenAI's own.
        purpose: What the server is for, in messages.
        url_option: The setting that names it, in messages.
        max_parallel: Calls at once.
        timeout_s: Seconds for a call.
        max_retries: Further tries of a call.
        backoff_s: Seconds before the first.
    """

    def __init__(
        self, base_url: str | None, purpose: str, url_option: str, *, max_parallel: int = 8, timeout_s: float = 60,
        max_retries: int = 5, backoff_s: float = 1,
    ) -> None:  # fmt: skip
        """Make the client; nothing is sent yet."""
        try:
            import openai
        except ImportError:
            raise UsageError(f"The {purpose} needs a package: pip install course-correction[openai]") from None
        key = os.environ.get("OPENAI_API_KEY")
        if not key and base_url is None:
            raise UsageError(f"OPENAI_API_KEY is not set. Set it, or give {url_option} of a server of yours.")
        self.name, self.purpose, self.max_parallel = base_url or "OpenAI", purpose, max_parallel
        self._max_retries, self._backoff_s = max_retries, backoff_s
        self._was_reached = False
        self._allowed, self._running, self._turn = float(max_parallel), 0, threading.Condition()
        timeout = openai.Timeout(timeout_s, connect=min(5, timeout_s))
        self.client = openai.OpenAI(api_key=key or "none", base_url=base_url, max_retries=0, timeout=timeout)

    def call(self, ask: Callable[[Any], T], model: str) -> T:
        """Return `ask(client)`, tried again where that may help.

        Args:
            ask: Makes one request and takes what it needs from the answer.
            model: Its name, for messages.

        Raises:
            UsageError: If the server cannot be reached at all, or refuses the key or the model.
            ServerError: If this call failed for good.
        """
        import openai

        for attempt in range(self._max_retries + 1):
            wait = min(self._backoff_s * 2**attempt, 30) * random.uniform(0.75, 1.25)
            try:
                with self._Place(self):
                    answer = ask(self.client)
            except UsageError:
                # A ValueError too, but not the server's.
                raise
            except openai.APIConnectionError as error:
                reason = "timeout" if isinstance(error, openai.APITimeoutError) else "no connection"
                if not self._was_reached and attempt >= min(1, self._max_retries):
                    raise UsageError(f"The {self.purpose}'s server {self.name} cannot be reached.") from None
            except openai.APIStatusError as error:
                reason, status = f"http {error.status_code}", error.status_code
                if status in (401, 404, *(() if self._was_reached else (403,))) or error.code in _MENDABLE:
                    refused = f"{self.name} refuses {model!r} or OPENAI_API_KEY ({reason}, {error.code})"
                    raise UsageError(f"{refused}. Check both.") from None
                self._was_reached = True
                if status < 500 and status not in _WORTH_A_RETRY:
                    raise ServerError(reason) from None
                wait = _asked_to_wait(error.response.headers, wait)
            except (openai.APIError, ValueError, AttributeError, IndexError, TypeError, KeyError):
                # It answered, but not as such a server does; a proxy's error page is gone by the next try.
                self._was_reached, reason = True, "unparsable"
            else:
                self._was_reached = True
                with self._turn:
                    self._allowed = min(self.max_parallel, self._allowed + 1 / max(1.0, self._allowed))
                return answer
            with self._turn:
                self._allowed = max(1.0, self._allowed / 2)
            if attempt < self._max_retries:
                time.sleep(wait)
        raise ServerError(reason)

    class _Place:
        """A place among the calls that may run now."""

        def __init__(self, server: "Server") -> None:
            self.server = server

        def __enter__(self) -> None:
            server = self.server
            with server._turn:
                server._turn.wait_for(lambda: server._running < max(1, int(server._allowed)))
                server._running += 1

        def __exit__(self, *_: Any) -> None:
            with self.server._turn:
                self.server._running -= 1
                self.server._turn.notify_all()


def _asked_to_wait(headers: Any, otherwise: float) -> float:
    """Return the seconds of Retry-After, at most `_LONGEST_WAIT_S`."""
    try:
        return min(max(float(headers.get("retry-after")), 0.0), _LONGEST_WAIT_S)
    except (TypeError, ValueError):
        return otherwise
