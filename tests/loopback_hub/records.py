"""What a loopback Hub keeps, as values: users, files, commits, repositories and events. Knows nothing of HTTP or disks."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

ORGANISATION = "team"
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".png")
REGULAR_LIMIT_BYTES = 1_000_000
PULL_REQUEST_REF = re.compile(r"refs/pr/(\d+)")


@dataclass(frozen=True)
class User:
    """Whom a token stands for.

    Attributes:
        name: Empty for a request without a token.
        role: write, read, or none without a token.
    """

    name: str = ""
    role: str = "none"

    def may_write(self, namespace: str) -> bool:
        """Whether this token may write in a namespace: its own name or the organisation."""
        return self.role == "write" and self.belongs_to(namespace)

    def belongs_to(self, namespace: str) -> bool:
        """Whether this user may read what is private in a namespace."""
        return bool(self.name) and namespace in (self.name, ORGANISATION)


TOKENS = {
    "hf_loopback_me": User("me", "write"),
    "hf_loopback_reader": User("me", "read"),
    "hf_loopback_other": User("other", "write"),
}


class HubError(Exception):
    """A refusal: a status, the Hub's error code, a message, and headers."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers


class Entry(NamedTuple):
    """A file of a commit: its git id (of the pointer, for LFS), bytes, SHA-256 and whether it is stored as LFS."""

    oid: str
    size: int
    sha256: str
    lfs: bool

    @property
    def etag(self) -> str:
        """What the Hub compares: the SHA-256 of an LFS file, the git id of a regular one."""
        return self.sha256 if self.lfs else self.oid

    def lfs_fields(self, key: str) -> dict[str, Any]:
        """Return the `lfs` field of a listing, or nothing; `key` is oid in trees and sha256 among siblings."""
        pointer = len(lfs_pointer(self.sha256, self.size))
        return {"lfs": {key: self.sha256, "size": self.size, "pointerSize": pointer}} if self.lfs else {}


@dataclass(frozen=True)
class Commit:
    """A commit: the whole tree by path, with title, message and author."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Entry]


@dataclass(frozen=True)
class Repo:
    """A repository as one immutable value: a change keeps a new one, or nothing.

    Attributes:
        kind: model, dataset or space.
        id: Namespace and name.
        gated: auto, manual or False.
        sdk: Of a space.
        branches: Commit ids by name, main included.
        tags: Commit ids by name.
        pulls: Commit ids by number.
        discussions: Pull requests and discussions, by number from 1.
        commits: By id.
    """

    kind: str
    id: str
    private: bool
    created: str
    gated: bool | str = False
    sdk: str | None = None
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    discussions: list[dict[str, Any]] = field(default_factory=list)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        """The user or organisation that owns it."""
        return self.id.split("/")[0]

    def head(self, revision: str) -> Commit:
        """Return the commit of a branch, tag, `refs/...` or commit id of at least seven digits.

        Raises:
            HubError: 404 RevisionNotFound.
        """
        pull = PULL_REQUEST_REF.fullmatch(revision)
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        commit = self.pulls.get(pull[1]) if pull else self.branches.get(name) or self.tags.get(name)
        if commit is None and re.fullmatch(r"[0-9a-f]{7,40}", revision):
            commit = next((commit for commit in self.commits if commit.startswith(revision)), None)
        if commit is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[commit]

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yield a commit and its ancestors, newest first."""
        while True:
            yield commit
            if commit.parent is None:
                return
            commit = self.commits[commit.parent]

    def last_change(self, commit: Commit, path: str) -> Commit:
        """Return the commit that gave a file or folder the content that it has in `commit`."""
        below = path + "/"

        def content(of: Commit) -> dict[str, Entry]:
            return {name: entry for name, entry in of.files.items() if name == path or name.startswith(below)}

        wanted, last = content(commit), commit
        for older in self.history(commit):
            if content(older) != wanted:
                break
            last = older
        return last

    def discussion(self, number: int) -> dict[str, Any]:
        """Return a discussion by its number.

        Raises:
            HubError: 404 when there is none.
        """
        if not 1 <= number <= len(self.discussions):
            raise HubError(404, None, f"Discussion {number} not found")
        return self.discussions[number - 1]


def now() -> str:
    """Return the time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_oid(content: bytes) -> str:
    """Return the git id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the file that git keeps in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def upload_mode(path: str, size: int) -> str:
    """Return lfs or regular, as preupload decides."""
    return "lfs" if path.endswith(LFS_SUFFIXES) or size > REGULAR_LIMIT_BYTES else "regular"


def new_event(discussion: dict[str, Any], user: User, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return an event of a discussion."""
    identity = f"{discussion['num']:08x}{len(discussion['events']):016x}"
    return {"id": identity, "type": kind, "createdAt": now(), "author": {"name": user.name}, "data": data}


def comment_data(user: User, text: str) -> dict[str, Any]:
    """Return the data of a comment's event."""
    latest = {"raw": text, "html": text, "updatedAt": now(), "author": {"name": user.name}}
    return {"edited": False, "hidden": False, "latest": latest, "history": []}


def new_commit(repo: Repo, parent: str | None, title: str, message: str, user: User, files: dict[str, Entry]) -> Commit:
    """Return a commit whose id follows from its repository, place and content."""
    date = now()
    content = json.dumps(
        [repo.kind, repo.id, len(repo.commits), parent, title, message, user.name, date, sorted(files.items())]
    )
    return Commit(hashlib.sha1(content.encode()).hexdigest(), parent, title, message, user.name, date, files)


def read_repo(kept: dict[str, Any]) -> Repo:
    """Return a repository from what `asdict` made of it."""
    commits = {
        commit_id: Commit(**{**commit, "files": {path: Entry(*entry) for path, entry in commit["files"].items()}})
        for commit_id, commit in kept["commits"].items()
    }
    return Repo(**{**kept, "commits": commits})


def forbidden(user: User, what: str) -> HubError:
    """Return the refusal of what a user may not do."""
    if not user.name:
        return HubError(401, None, "Invalid username or password.")
    reason = "your token has no write role" if user.role != "write" else "you are not in its namespace"
    return HubError(403, None, f"You don't have the rights to {what}: {reason}")
