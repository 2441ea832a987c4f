"""Calls to an OpenAI-compatible server: bounded, retried, and fewer when it is busy. Knows nothing of what is asked.

The openai client itself retries 408, 409, 429, 5xx, lost connections and timeouts, and honours Retry-After. What it lacks
is here: a limit on parallel calls that adapts, a quick error for a server that is not there, retries of answers that are
not JSON (a proxy's error page), and no retries where the user must act (quota used up).
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from course_correction.base.errors import UsageError

if TYPE_CHECKING:
    from httpx2 import Request, Response
    from openai import APIStatusError, OpenAI

T = TypeVar("T")
# Codes of errors that only the user can remedy.
_USER_ERRORS = ("insufficient_quota", "unsupported_parameter", "unsupported_value")
# As the client's own.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0


class ServerError(Exception):
    """A call that failed after all retries; `reason` is short and contains none of the texts."""

    def __init__(self, reason: str) -> None:
        """Keep the reason."""
        super().__init__(reason)
        self.reason = reason


class ParallelLimit:
    """Bounds the calls that run at once: half as many after each failure, a little more after each success."""

    def __init__(self, most: int) -> None:
        """Start with `most` calls, which is also the upper limit."""
        self.most, self.allowed = most, float(most)
        self._running, self._turn = 0, threading.Condition()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Wait until one more call may run."""
        with self._turn:
            self._turn.wait_for(lambda: self._running < max(1, int(self.allowed)))
            self._running += 1
        try:
            yield
        finally:
            with self._turn:
                self._running -= 1
                self._turn.notify_all()

    def halve(self) -> None:
        """Allow half as many calls, at least one."""
        with self._turn:
            self.allowed = max(1.0, self.allowed / 2)

    def raise_a_little(self) -> None:
        """Allow about one call more per `allowed` successes."""
        with self._turn:
            self.allowed = min(self.most, self.allowed + 1 / max(1.0, self.allowed))


class Server:
    """An OpenAI client with a limit on parallel calls and one-line errors. The key comes from OPENAI_API_KEY only.

    Args:
        base_url: Such as http://localhost:8000/v1; None is OpenAI's own.
        purpose: What the server is for, in messages.
        url_option: The setting that names it, in messages.
        max_parallel: Largest number of calls at once.
        timeout_s: Seconds per try of a call.
        max_retries: Further tries of a call; by default they span about half a minute.

    Raises:
        UsageError: If the package `openai` or the key is missing.
    """

    def __init__(
        self, base_url: str | None, purpose: str, url_option: str, *, max_parallel: int = 8, timeout_s: float = 60,
        max_retries: int = 7,
    ) -> None:  # fmt: skip
        """Make the client; nothing is sent yet."""
        try:
            import openai
        except ImportError:
            raise UsageError(f"The {purpose} needs a package: pip install course-correction[openai]") from None
        key = os.environ.get("OPENAI_API_KEY")
        if not key and base_url is None:
            raise UsageError(f"OPENAI_API_KEY is not set. Set it, or pass your own server as {url_option}.")
        self.name, self.purpose, self.max_parallel = base_url or "OpenAI", purpose, max_parallel
        self.limit = ParallelLimit(max_parallel)
        self._max_retries = max_retries
        self._was_reached, self._reaching, self._has_answered = False, threading.Lock(), False
        self.client = openai.OpenAI(
            api_key=key or "none",
            base_url=base_url,
            max_retries=max_retries,
            timeout=openai.Timeout(timeout_s, connect=min(5, timeout_s)),
            http_client=openai.DefaultHttpxClient(
                event_hooks={"request": [self._before_request], "response": [self._after_response]}
            ),
        )

    def call(self, ask: "Callable[[OpenAI], T]", model: str) -> T:
        """Return `ask(client)`, tried again where that may help.

        Args:
            ask: Makes one request and reads the answer.
            model: Name of the model, for messages.

        Raises:
            UsageError: If the server cannot be reached at all, or refuses the key or the model.
            ServerError: If this call fails after all retries.
        """
        import openai

        self._check_reachable()
        for attempt in range(self._max_retries + 1):
            if attempt:
                time.sleep(min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S))
            try:
                with self.limit.place():
                    answer = ask(self.client)
            except UsageError:
                # UsageError is a ValueError, which below means an unreadable answer.
                raise
            except openai.APIStatusError as error:
                raise self._explain(error, model) from None
            except openai.APIConnectionError as error:
                self.limit.halve()
                reason = "timeout" if isinstance(error, openai.APITimeoutError) else "no connection"
                raise ServerError(reason) from None
            except (openai.APIError, ValueError, AttributeError, IndexError, TypeError, KeyError):
                # The answer is not a completion.
                self.limit.halve()
            else:
                self._has_answered = True
                self.limit.raise_a_little()
                return answer
        raise ServerError("unparsable")

    def _check_reachable(self) -> None:
        """Fail within seconds if nothing answers: one request with a single retry, before the first call."""
        import openai

        with self._reaching:
            if self._was_reached:
                return
            try:
                self.client.with_options(max_retries=1).models.with_raw_response.list()
            except openai.APIStatusError:
                # It answered; the calls themselves report what it refuses.
                pass
            except openai.APIConnectionError:
                raise UsageError(
                    f"The {self.purpose}'s server {self.name} cannot be reached. Start it, or check its address."
                ) from None
            self._was_reached = True

    def _before_request(self, request: "Request") -> None:
        if request.headers.get("x-stainless-retry-count", "0") != "0":
            # A retry by the client, whatever the failure.
            self.limit.halve()

    def _after_response(self, response: "Response") -> None:
        if response.status_code == 429 and any(code in response.read().decode(errors="replace") for code in _USER_ERRORS):
            # With this header a server forbids the client to retry.
            response.headers["x-should-retry"] = "false"

    def _explain(self, error: "APIStatusError", model: str) -> UsageError | ServerError:
        """Return the error of a refused key or model, or that of a single call."""
        status = error.status_code
        # Later a 403 concerns one request, such as a content filter's.
        if status in (401, 404, *(() if self._has_answered else (403,))) or error.code in _USER_ERRORS:
            return UsageError(f"{self.name} refuses {model!r} or OPENAI_API_KEY (http {status}, {error.code}). Check both.")
        if status >= 500 or status == 429:
            self.limit.halve()
        return ServerError(f"http {status}")
