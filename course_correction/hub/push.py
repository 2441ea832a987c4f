"""Push files to the Hub in one commit. Access is checked before any work, and a commit is repeated until it is made.

A commit is atomic: readers load the whole old version or the whole new one. The client uploads large files before the
commit, and uploads none twice, so a failed push can be repeated.
"""

import fnmatch
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from course_correction.base.errors import UsageError
from course_correction.base.redaction import check_nothing_private
from course_correction.hub.client import one_line, with_retries
from course_correction.hub.settings import DatasetPushSettings

logger = logging.getLogger(__name__)


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
        """Its page on the Hub."""
        from huggingface_hub import constants

        prefix = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        return f"{constants.ENDPOINT}/{prefix}{self.repo_id}"


def open_repo(
    repo_id: str | None,
    repo_type: str,
    private: bool = True,
    gated: Literal["auto", "manual"] | None = None,
    create_pr: bool = False,
    space_sdk: str | None = None,
) -> HubRepo:
    """Create the repository if it does not exist, and check that this token may write to it. Call before long work.

    Args:
        repo_id: owner/name.
        repo_type: model, dataset or space.
        private: Of a new repository; an existing one keeps its visibility.
        gated: Whether readers of the dataset must ask for access. Set before anything is pushed.
        create_pr: Pushes open pull requests: the repository must exist, and may belong to somebody else.
        space_sdk: Of a Space.

    Raises:
        UsageError: If there is no token, it is expired or read-only, or the repository belongs to somebody else.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if repo_id is None or repo_id.count("/") != 1:
        raise UsageError(f"{repo_id!r} is no repository on the Hub: give owner/name.")
    with one_line(repo_id):
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise UsageError(f"{repo_id!r} is no repository on the Hub: {str(error).split('. ')[0]}.") from None
        if not get_token():
            raise UsageError("Pushing needs a Hub token: run `hf auth login`, or set HF_TOKEN.")
        api = HfApi()
        user = with_retries(api.whoami, "asking the Hub whose token this is")
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UsageError(f"The Hub token of {user['name']} may only read. Make one with role write: `hf auth login`.")
        if create_pr:
            if not with_retries(lambda: api.repo_exists(repo_id, repo_type=repo_type), "looking for the repository"):
                raise UsageError(
                    f"There is no {repo_type} {repo_id} to open a pull request in, or this token may not see it."
                )
            return HubRepo(repo_id, repo_type, create_pr=True)
        with_retries(
            lambda: api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=space_sdk),
            "creating the repository",
        )
        with_retries(lambda: api.auth_check(repo_id, repo_type=repo_type, write=True), "checking write access")
        if gated:
            with_retries(
                lambda: api.update_repo_settings(repo_id, repo_type=repo_type, gated=gated), "gating the repository"
            )
    return HubRepo(repo_id, repo_type)


def push(
    repo: HubRepo,
    files: Mapping[str, Path | bytes],
    message: str,
    stale: Iterable[str] = (),
    parent_commit: str | None = None,
) -> str:
    """Push files in one commit, or in a pull request (an open one with the same title is extended).

    Args:
        repo: Where to.
        files: The path or the content of each file, by its name in the repository.
        message: Title of the commit.
        stale: Patterns of files to delete in the same commit, unless they are among `files`.
        parent_commit: The commit that `files` were made from.

    Returns:
        The address of the repository or of the pull request.

    Raises:
        ParentMoved: If the repository has a newer commit than `parent_commit`.
        UsageError: If the Hub refuses, or a file contains something private. Nothing becomes visible then.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    check_nothing_private(files)
    api = HfApi()
    size = sum(len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values())
    logger.info(f"Pushing {len(files)} files, {size / 1e6:,.1f} MB, to {repo.url}")

    def commit() -> str:
        revision = find_revision(repo, message)
        present = api.list_repo_files(repo.repo_id, repo_type=repo.repo_type, revision=revision)
        deleted = [name for name in present if name not in files and any(_matches(name, pattern) for pattern in stale)]
        # New operations for each attempt: they remember what was uploaded, even if the server has lost it.
        additions = [CommitOperationAdd(name, content) for name, content in files.items()]
        info = api.create_commit(
            repo.repo_id,
            [*additions, *(CommitOperationDelete(name) for name in deleted)],
            commit_message=message,
            repo_type=repo.repo_type,
            revision=revision,
            create_pr=repo.create_pr and revision is None,
            parent_commit=parent_commit,
        )
        if revision is not None:
            return f"{repo.url}/discussions/{revision.rsplit('/', 1)[1]}"
        return info.pr_url or repo.url

    with one_line(repo.repo_id):
        return with_retries(commit, "pushing")


def open_dataset_repo(settings: DatasetPushSettings) -> HubRepo:
    """Return the dataset repository that the settings name. Creates it if it does not exist."""
    return open_repo(settings.hub_dataset_id, "dataset", settings.hub_private_repo, settings.gated)


def push_dataset(repo: HubRepo, folder: Path, configs: Iterable[str]) -> str:
    """Push an exported dataset, card and all configs, in one commit: no reader loads half of it.

    Args:
        repo: Of `open_dataset_repo`.
        folder: The export: README.md and a folder of Parquet files for each config.
        configs: Their names.

    Returns:
        The dataset's address.
    """
    files: dict[str, Path | bytes] = {"README.md": folder / "README.md"}
    files |= {path.name: path for path in folder.glob("*.yaml")}
    for config in configs:
        files |= {f"{config}/{path.name}": path for path in sorted((folder / config).glob("*.parquet"))}
    return push(repo, files, "Dataset and card", stale=[f"{config}/*.parquet" for config in configs])


def _matches(name: str, pattern: str) -> bool:
    # A star of fnmatch crosses folders; a pattern without a folder is about the root.
    return ("/" in pattern or "/" not in name) and fnmatch.fnmatch(name, pattern)


def read_file(repo: HubRepo, name: str, revision: str | None = None) -> str | None:
    """Return the text of a file of the repository, or None if the repository has no such file.

    Raises:
        HfHubHTTPError: If the file could not be read.
        TransportError: Likewise.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    def read() -> str | None:
        try:
            path = hf_hub_download(repo.repo_id, name, repo_type=repo.repo_type, revision=revision)
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError as error:
            # The client raises this if the Hub did not answer and the cache has no copy.
            raise error.__cause__ or error from None
        return Path(path).read_text(encoding="utf-8")

    return with_retries(read, f"reading {name}")


def find_revision(repo: HubRepo, title: str) -> str | None:
    """Return the revision that a push of that title goes to: this user's open pull request, or None for main."""
    from huggingface_hub import HfApi

    if not repo.create_pr:
        return None
    api = HfApi()
    author = api.whoami(cache=True)["name"]
    requests = api.get_repo_discussions(
        repo.repo_id, repo_type=repo.repo_type, author=author, discussion_type="pull_request", discussion_status="open"
    )
    return next((f"refs/pr/{request.num}" for request in requests if request.title == title), None)
