"""Where a loopback Hub keeps its repositories: a folder of blobs and JSON, and who finds, reads or writes what in it."""

import hashlib
import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path

from tests.loopback_hub.records import (
    LFS_SUFFIXES,
    Entry,
    HubError,
    Repo,
    User,
    forbidden,
    git_oid,
    new_commit,
    now,
    read_repo,
)

GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class Store:
    """Repositories in a folder: content-addressed blobs and one JSON file a repository. Callers hold a lock."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, with what earlier ones kept there."""
        self.folder = folder
        for name in ("blobs", "repos", "uploads"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._repos: dict[tuple[str, str], Repo] = {}
        for path in sorted((folder / "repos").glob("*.json")):
            repo = read_repo(json.loads(path.read_text(encoding="utf-8")))
            self._repos[repo.kind, repo.id] = repo

    def all(self) -> list[Repo]:
        """Return every repository."""
        return list(self._repos.values())

    def get(self, kind: str, repo_id: str) -> Repo | None:
        """Return a repository, whoever asks."""
        return self._repos.get((kind, repo_id))

    def find(self, kind: str, repo_id: str, user: User) -> Repo:
        """Return a repository that a user may know of.

        Raises:
            HubError: RepoNotFound, 404 for users and 401 for nobody in particular, as the Hub has it.
        """
        repo = self.get(kind, repo_id)
        if repo is None or (repo.private and not user.belongs_to(repo.namespace)):
            if user.name:
                raise HubError(404, "RepoNotFound", "Repository not found")
            raise HubError(401, "RepoNotFound", "Invalid username or password.")
        return repo

    def for_writing(self, kind: str, repo_id: str, user: User) -> Repo:
        """Return a repository that a user may write.

        Raises:
            HubError: As `find`, or 403.
        """
        repo = self.find(kind, repo_id, user)
        if not user.may_write(repo.namespace):
            raise forbidden(user, f"write to the {kind} {repo_id}")
        return repo

    def for_contributing(self, kind: str, repo_id: str, user: User) -> Repo:
        """Return a repository to which a user may open a pull request: any that it reads, with a write token."""
        repo = self.find(kind, repo_id, user)
        if user.role != "write":
            raise forbidden(user, f"open a pull request to the {kind} {repo_id}")
        return repo

    def for_reading(self, kind: str, repo_id: str, user: User) -> Repo:
        """Return a repository whose files a user may download.

        Raises:
            HubError: As `find`, or GatedRepo: 403, and 401 for nobody in particular.
        """
        repo = self.find(kind, repo_id, user)
        if repo.gated and not user.belongs_to(repo.namespace):
            cause = "you are not in the authorized list." if user.name else "you must be authenticated to access it."
            message = f"Access to {kind} {repo_id} is restricted and {cause}"
            raise HubError(403 if user.name else 401, "GatedRepo", message)
        return repo

    def create(self, kind: str, repo_id: str, user: User, private: bool, sdk: str | None) -> Repo:
        """Create a repository with the Hub's initial commit of `.gitattributes`.

        Raises:
            HubError: 403, 409 if it exists, or 400 for a bad name or a space without its SDK.
        """
        well_named = re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", repo_id, re.ASCII) and "--" not in repo_id
        if not well_named or kind not in ("model", "dataset", "space"):
            raise HubError(400, None, f"Invalid repo: {kind} {repo_id}")
        if kind == "space" and not sdk:
            raise HubError(400, None, '"sdk" is required')
        if not user.may_write(repo_id.split("/")[0]):
            raise forbidden(user, f'create a {kind} under the namespace "{repo_id.split("/")[0]}"')
        if self.get(kind, repo_id):
            raise HubError(409, None, f"You already created this {kind} repo")
        repo = Repo(kind, repo_id, private, now(), sdk=sdk)
        commit = new_commit(repo, None, "initial commit", "", user, {".gitattributes": self.put(GIT_ATTRIBUTES)})
        return self.keep(replace(repo, branches={"main": commit.id}, commits={commit.id: commit}))

    def delete(self, repo: Repo) -> None:
        """Forget a repository; its blobs stay."""
        self._path(repo).unlink()
        del self._repos[repo.kind, repo.id]

    def keep(self, repo: Repo) -> Repo:
        """Put a repository's new value in place of the old one, on disk first, at once."""
        new = self.folder / "uploads" / f"{repo.kind}.json"
        new.write_text(json.dumps(asdict(repo)), encoding="utf-8")
        os.replace(new, self._path(repo))
        self._repos[repo.kind, repo.id] = repo
        return repo

    def _path(self, repo: Repo) -> Path:
        return self.folder / "repos" / f"{repo.kind}--{repo.id.replace('/', '--')}.json"

    def blob(self, sha256: str) -> Path:
        """Return where the blob of a SHA-256 lies or would lie."""
        return self.folder / "blobs" / sha256

    def put(self, content: bytes) -> Entry:
        """Store a regular file and return its entry."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.blob(sha256)
        if not path.exists():
            new = self.folder / "uploads" / "regular"
            new.write_bytes(content)
            os.replace(new, path)
        return Entry(git_oid(content), len(content), sha256, lfs=False)
