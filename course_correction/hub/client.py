"""Calls of the Hub's client: repeated while the Hub is busy, their errors on one line. Knows nothing of what is pushed."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from course_correction.base.errors import UsageError

if TYPE_CHECKING:
    from tenacity import RetryCallState

logger = logging.getLogger(__name__)

ATTEMPTS = 6
_LONGEST_WAIT = 60.0  # Seconds.
_PASSING = {408, 429, 500, 502, 503, 504}
_REMEDIES = {
    401: "The token is invalid or expired: run `hf auth login`, or set HF_TOKEN",
    403: "This token may not write there: use an id of your own, a token with role write, or --create_pr true",
    404: "The repository does not exist, or this token may not see it",
    409: "The push conflicts with the repository: look at it on the Hub",
    413: "A file is too large for the Hub",
}

Result = TypeVar("Result")


class ParentMoved(UsageError):
    """Somebody else committed to the repository in the meantime."""


def with_retries(action: Callable[[], Result], what: str) -> Result:
    """Return what `action` returns, repeating it while the Hub is busy or the connection is lost.

    The client repeats single uploads, but neither commits nor reads. Waits as long as Retry-After asks, 60 seconds at most.

    Args:
        action: What to do. It must be safe to repeat.
        what: Its name in the log.

    Raises:
        HfHubHTTPError: Of the last of `ATTEMPTS` attempts, or of the first that waiting does not help.
        TransportError: Likewise.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_attempt

    def unwrapped() -> Result:
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return action()
        except RuntimeError as error:
            # The client hides the cause of a failed upload in one of these.
            if isinstance(error.__cause__, HfHubHTTPError | httpx2.TransportError):
                raise error.__cause__ from None
            raise

    def log(state: "RetryCallState") -> None:
        error, wait = _error_of(state), state.upcoming_sleep
        reason = f"status {status}" if (status := _status(error)) else type(error).__name__
        logger.info(f"{what}: {reason}, again in {wait:.0f} s ({state.attempt_number} of {ATTEMPTS - 1})")

    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS), retry=retry_if_exception(_may_pass), wait=_wait, before_sleep=log, reraise=True
    )
    return retrying(unwrapped)


def _error_of(state: "RetryCallState") -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _status(error: BaseException | None) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else response.status_code


def _may_pass(error: BaseException) -> bool:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return _status(error) in _PASSING
    return isinstance(error, httpx2.TransportError)


def _wait(state: "RetryCallState") -> float:
    headers = getattr(getattr(_error_of(state), "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    return min(_LONGEST_WAIT, float(asked) if re.fullmatch(r"\d+", asked) else 2.0 ** (state.attempt_number - 1))


@contextlib.contextmanager
def one_line(repo_id: str) -> Iterator[None]:
    """Turn the errors of the Hub's client into one line with a remedy.

    Raises:
        ParentMoved: If the repository has a newer commit than the one that a push started from.
        UsageError: On any other error of the Hub or of the connection.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 412:
            raise ParentMoved(f"Somebody else is committing to {repo_id}. Run the same command again.") from None
        answer = " ".join((error.server_message or "").split())[:200]
        remedy = _REMEDIES.get(status, "Run the same command again later: finished work is kept")
        raise UsageError(
            f"The Hub refused {repo_id} (status {status}{': ' + answer if answer else ''}). {remedy}."
        ) from None
    except ValueError as error:
        # A card that the Hub, or its client, cannot read. An error of ours is one line already.
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{repo_id}: {' '.join(str(error).split())[:300]}") from None
    except httpx2.TransportError as error:
        raise UsageError(
            f"The Hub cannot be reached ({type(error).__name__}). Run the same command again: finished work is kept."
        ) from None
