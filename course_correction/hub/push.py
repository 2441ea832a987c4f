"""Push to the Hub: who may write is found out before any work; a push is one commit, tried again until it is in.

A commit is atomic: what others load is the whole of the old version or the whole of the new one. Large files are sent
before it and are not sent twice, so a push that failed can simply be repeated.
"""

import contextlib
import fnmatch
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.redaction import check_nothing_private
from course_correction.hub.settings import DatasetPushSettings

logger = logging.getLogger(__name__)

ATTEMPTS = 6
_LONGEST_WAIT = 60.0  # Seconds.
_PASSING = {408, 429, 500, 502, 503, 504}


class ParentMoved(UsageError):
    """Somebody else committed to the repository in the meantime."""


@dataclass(frozen=True)
class HubRepo:
    """A repository on the Hub that this token may write to (or open pull requests in).

    Attributes:
        repo_id: owner/name.
        repo_type: model, dataset or space.
        create_pr: Whether a push opens a pull request instead of committing.
    """

    repo_id: str
    repo_type: str
    create_pr: bool = False

    @property
    def url(self) -> str:
        """Where people see it."""
        from huggingface_hub import constants

        prefix = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        return f"{constants.ENDPOINT}/{prefix}{self.repo_id}"


def open_repo(
    repo_id: str,
    repo_type: str,
    private: bool = True,
    gated: str | None = None,
    create_pr: bool = False,
    space_sdk: str | None = None,
) -> HubRepo:
    """Make the repository if there is none, and find out whether this token may write to it. Call before long work.

    Args:
        repo_id: owner/name.
        repo_type: model, dataset or space.
        private: Of a repository that is made; one that exists stays as it is.
        gated: auto or manual: readers of the dataset must ask. Set before anything is pushed.
        create_pr: Pushes open pull requests: the repository must exist, and may be somebody else's.
        space_sdk: Of a Space.

    Raises:
        UsageError: If there is no token, it is expired or may only read, or the repository is not this user's.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if repo_id.count("/") != 1:
        raise UsageError(f"{repo_id!r} is no place on the Hub: give owner/name.")
    with one_line(repo_id):
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise UsageError(f"{repo_id!r} is no place on the Hub: {str(error).split('. ')[0]}.") from None
        if not get_token():
            raise UsageError("Pushing needs a Hub token: `hf auth login`, or set HF_TOKEN.")
        api = HfApi()
        who = patiently(api.whoami, "asking the Hub who this token belongs to")
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UsageError(f"The Hub token of {who['name']} may only read. Make one with role write: `hf auth login`.")
        if create_pr:
            if not patiently(lambda: api.repo_exists(repo_id, repo_type=repo_type), "looking for the repository"):
                raise UsageError(f"There is no {repo_type} {repo_id} to open a pull request in (or it is not yours to see).")
            return HubRepo(repo_id, repo_type, create_pr=True)
        options = {"space_sdk": space_sdk} if space_sdk else {}
        patiently(
            lambda: api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **options),
            "making the repository",
        )
        patiently(lambda: api.auth_check(repo_id, repo_type=repo_type, write=True), "asking for write access")
        if gated:
            patiently(
                lambda: api.update_repo_settings(repo_id, repo_type=repo_type, gated=gated), "asking readers to ask first"
            )
    return HubRepo(repo_id, repo_type)


def push(
    repo: HubRepo,
    files: Mapping[str, Path | bytes],
    message: str,
    stale: Iterable[str] = (),
    parent_commit: str | None = None,
) -> str:
    """Push files in one commit, or open a pull request that does (an open one of the same title is added to).

    Args:
        repo: Where to.
        files: A path or the content of each file by its name in the repository.
        message: Title of the commit.
        stale: Patterns of files to delete in the same commit, unless they are among `files`.
        parent_commit: The commit that `files` were made from.

    Returns:
        The address of the repository or of the pull request.

    Raises:
        ParentMoved: If `parent_commit` is not the last one any more.
        UsageError: If the Hub refuses, or something private would be pushed. What was sent stays invisible.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    check_nothing_private(files)
    api = HfApi()
    size = sum(len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values())
    logger.info(f"Pushing {len(files)} files, {size / 1e6:,.1f} MB, to {repo.url}")

    def attempt() -> str:
        revision = find_revision(repo, message)
        there = api.list_repo_files(repo.repo_id, repo_type=repo.repo_type, revision=revision)
        gone = [name for name in there if name not in files and any(_matches(name, pattern) for pattern in stale)]
        # Made anew for each attempt: an operation remembers what was sent, also to a server that has lost it.
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(
            repo.repo_id,
            [*operations, *(CommitOperationDelete(name) for name in gone)],
            commit_message=message,
            repo_type=repo.repo_type,
            revision=revision,
            create_pr=repo.create_pr and revision is None,
            parent_commit=parent_commit,
        )
        if revision is not None:
            return f"{repo.url}/discussions/{revision.rsplit('/', 1)[1]}"
        return commit.pr_url or repo.url

    with one_line(repo.repo_id):
        return patiently(attempt, "pushing")


def open_dataset_repo(settings: DatasetPushSettings) -> HubRepo:
    """Return the dataset repository of these settings, made if need be."""
    return open_repo(settings.hub_dataset_id, "dataset", settings.hub_private_repo, settings.gated)


def push_dataset(repo: HubRepo, folder: Path, configs: Iterable[str]) -> str:
    """Push an exported dataset, card and all configs in one commit: nobody loads half of it.

    Args:
        repo: Of `open_dataset_repo`.
        folder: The export: README.md and a folder of Parquet files for each config.
        configs: Their names.

    Returns:
        The dataset's address.
    """
    files = {"README.md": folder / "README.md"} | {path.name: path for path in folder.glob("*.yaml")}
    for config in configs:
        files |= {f"{config}/{path.name}": path for path in sorted((folder / config).glob("*.parquet"))}
    return push(repo, files, "Dataset and card", stale=[f"{config}/*.parquet" for config in configs])


def _matches(name: str, pattern: str) -> bool:
    # A star of fnmatch crosses folders; a pattern without a folder is about the root.
    return ("/" in pattern or "/" not in name) and fnmatch.fnmatch(name, pattern)


def read_file(repo: HubRepo, name: str, revision: str | None = None) -> str | None:
    """Return the text of a file of the repository; None if there is none there, not if it could not be read."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    def read() -> str | None:
        try:
            path = hf_hub_download(repo.repo_id, name, repo_type=repo.repo_type, revision=revision)
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError as error:
            # So the client says that the Hub did not answer, and that it has no copy.
            raise error.__cause__ or error from None
        return Path(path).read_text(encoding="utf-8")

    return patiently(read, f"reading {name}")


def find_revision(repo: HubRepo, title: str) -> str | None:
    """Return the revision that a push of that title goes to: this user's open pull request, or None for main."""
    from huggingface_hub import HfApi

    if not repo.create_pr:
        return None
    api = HfApi()
    author = api.whoami(cache=True)["name"]
    found = api.get_repo_discussions(
        repo.repo_id, repo_type=repo.repo_type, author=author, discussion_type="pull_request", discussion_status="open"
    )
    return next((f"refs/pr/{one.num}" for one in found if one.title == title), None)


def patiently(action: Callable[[], Any], what: str) -> Any:
    """Do `action`; where the Hub is busy or the connection is lost, wait and do it again, `ATTEMPTS` times at most.

    Honours Retry-After. `action` must be safe to repeat.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(1, ATTEMPTS + 1):
        try:
            try:
                return action()
            except RuntimeError as error:
                # The client wraps so what an upload of a large file failed by.
                if isinstance(error.__cause__, HfHubHTTPError | httpx2.TransportError):
                    raise error.__cause__ from None
                raise
        except (HfHubHTTPError, httpx2.TransportError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if (status is not None and status not in _PASSING) or attempt == ATTEMPTS:
                raise
            wait = _wait(error, attempt)
            reason = f"status {status}" if status else type(error).__name__
            logger.info(f"{what}: {reason}, again in {wait:.0f} s ({attempt} of {ATTEMPTS - 1})")
            time.sleep(wait)
    raise AssertionError("unreachable")


def _wait(error: Exception, attempt: int) -> float:
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return min(_LONGEST_WAIT, float(asked) if re.fullmatch(r"\d+", asked) else 2.0 ** (attempt - 1))


@contextlib.contextmanager
def one_line(repo_id: str) -> Any:
    """Turn what the Hub's client raises into one line with a remedy."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 412:
            raise ParentMoved(f"Somebody else is committing to {repo_id}. Run the same command again.") from None
        remedies = {
            401: "The token is invalid or expired: `hf auth login`, or set HF_TOKEN",
            403: "This token may not write there: use an id of your own, a token with role write, or --create_pr true",
            404: "There is no such repository, or this token may not see it",
            409: "It conflicts with what is there: look at the repository",
            413: "Too large for the Hub",
        }
        said = " ".join((error.server_message or "").split())[:200]
        remedy = remedies.get(status, "Run the same command again later: what is finished is kept")
        raise UsageError(f"The Hub refused {repo_id} (status {status}{': ' + said if said else ''}). {remedy}.") from None
    except ValueError as error:
        # A card that the Hub, or its client, cannot read. An error of ours is one line already.
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{repo_id}: {' '.join(str(error).split())[:300]}") from None
    except httpx2.TransportError as error:
        raise UsageError(
            f"The Hub cannot be reached ({type(error).__name__}). Run the same command again: what is finished is kept."
        ) from None
