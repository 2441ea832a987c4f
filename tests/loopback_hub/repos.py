"""Changes of a loopback Hub's repositories: commits, discussions, pull requests and their merging. Knows nothing of HTTP."""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tests.loopback_hub.records import (
    PULL_REQUEST_REF,
    Commit,
    Entry,
    HubError,
    Repo,
    User,
    comment_data,
    forbidden,
    git_oid,
    lfs_pointer,
    new_commit,
    new_event,
    now,
    upload_mode,
)
from tests.loopback_hub.store import Store

UNSAFE_PATH = re.compile(r"^/|^$|//|/$|\\|\0|(^|/)(\.\.?|\.git)(/|$)")


class Repositories(Store):
    """Repositories with what is done to them, all of it or nothing. Callers hold a lock."""

    def commit(
        self, repo: Repo, revision: str, user: User, operations: Iterable[dict[str, Any]], pull_request: bool
    ) -> tuple[Repo, Commit, int | None]:
        """Make a commit on a branch or pull request, or open a pull request with it: all operations or none.

        Args:
            repo: Its value before.
            revision: The branch or `refs/pr/N`; the base branch of a new pull request.
            user: The author, whose right to do so is checked.
            operations: The header, then files, each `{"key": ..., "value": ...}`.
            pull_request: Whether to open one.

        Returns:
            The repository after, the commit, and the number of the new pull request.

        Raises:
            HubError: 400, 403, 404, or 412 where the parent commit is not the branch's head.
        """
        pull = PULL_REQUEST_REF.fullmatch(revision)
        branch = revision.removeprefix("refs/heads/")
        head = repo.head(revision)
        if not pull and branch not in repo.branches:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        own_pull = pull and repo.discussion(int(pull[1]))["author"] == user.name and user.role == "write"
        if not (user.may_write(repo.namespace) or own_pull or (pull_request and user.role == "write")):
            raise forbidden(user, f"write to the {repo.kind} {repo.id}")
        header, files = None, dict(head.files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "header":
                header = value
                parent = value.get("parentCommit")
                if parent and pull_request:
                    head = repo.head(parent)
                    files = dict(head.files)
                elif parent and not head.id.startswith(parent):
                    raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
            else:
                self._apply(files, operation["key"], value)
        if header is None or not header.get("summary"):
            raise HubError(400, None, '"value.summary" is required')
        commit = new_commit(repo, head.id, header["summary"], header.get("description") or "", user, files)
        repo = replace(repo, commits={**repo.commits, commit.id: commit})
        if pull_request:
            repo = self.discuss(repo, user, commit.title, commit.message, f"refs/heads/{branch}", commit)
            return repo, commit, len(repo.discussions)
        if pull:
            return self.keep(replace(repo, pulls={**repo.pulls, pull[1]: commit.id})), commit, None
        return self.keep(replace(repo, branches={**repo.branches, branch: commit.id})), commit, None

    def _apply(self, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value.get("path", "")
        below = path.rstrip("/") + "/"
        if UNSAFE_PATH.search(path.rstrip("/") if key == "deletedFolder" else path):
            raise HubError(400, None, f"Invalid path in repo: {path!r}")
        if key == "file":
            try:
                content = value["content"]
                content = base64.b64decode(content, validate=True) if value.get("encoding") == "base64" else content.encode()
            except binascii.Error as error:
                raise HubError(400, None, f"{path}: {error}") from error
            if content and upload_mode(path, len(content)) == "lfs":
                raise HubError(400, None, f"{path} must be uploaded with LFS")
            files[path] = self.put(content)
        elif key == "lfsFile":
            blob = self.blob(value["oid"])
            if not re.fullmatch("[0-9a-f]{64}", value["oid"]) or not blob.exists():
                raise HubError(400, None, f"LFS pointer pointed to a file that does not exist: {path} ({value['oid']})")
            size = blob.stat().st_size
            if value.get("size", size) != size:
                raise HubError(400, None, f"{path}: the pointer says {value['size']} bytes, {size} were uploaded")
            files[path] = Entry(git_oid(lfs_pointer(value["oid"], size)), size, value["oid"], lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if (name == path if key == "deletedFile" else name.startswith(below))]
            if not gone:
                raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
            for name in gone:
                del files[name]
        else:
            raise HubError(400, None, f"Unknown operation: {key}")

    def discuss(self, repo: Repo, user: User, title: str, text: str, base: str | None, head: Commit | None) -> Repo:
        """Open a discussion, or a pull request from `head` to the ref `base`; one without a change is a draft."""
        number = len(repo.discussions) + 1
        status = "draft" if head and head.id in repo.branches.values() else "open"
        opened = {
            "num": number,
            "title": title,
            "status": status,
            "author": user.name,
            "base": base,
            "isPullRequest": base is not None,
            "createdAt": now(),
            "start": head and (head.id if status == "draft" else head.parent),
            "mergeCommitId": None,
            "events": [],
        }
        opened["events"].append(new_event(opened, user, "comment", comment_data(user, text)))
        pulls = {**repo.pulls, str(number): head.id} if head else repo.pulls
        return self.keep(replace(repo, pulls=pulls, discussions=[*repo.discussions, opened]))

    def change_discussion(self, repo: Repo, number: int, **fields: Any) -> Repo:
        """Change fields of a discussion."""
        changed = {**repo.discussion(number), **fields}
        rest = [changed if old["num"] == number else old for old in repo.discussions]
        return self.keep(replace(repo, discussions=rest))

    def conflicts(self, repo: Repo, number: int) -> list[str]:
        """Return the paths that both a pull request and its base have changed."""
        pull = repo.discussion(number)
        start, ours, theirs = (
            repo.commits[pull["start"]].files,
            repo.head(pull["base"]).files,
            repo.head(f"refs/pr/{number}").files,
        )
        paths = sorted({*ours, *theirs, *start})
        return [p for p in paths if start.get(p) != ours.get(p) != theirs.get(p) != start.get(p)]

    def merge(self, repo: Repo, number: int, user: User) -> Repo:
        """Squash a pull request onto its base, as the Hub does.

        Raises:
            HubError: 400 where it is no open pull request, 409 on conflicts.
        """
        pull = repo.discussion(number)
        if not pull["isPullRequest"] or pull["status"] not in ("open", "draft"):
            raise HubError(400, None, f"Discussion {number} is no open pull request: {pull['status']}")
        if conflicts := self.conflicts(repo, number):
            raise HubError(409, None, f"This pull request has conflicts: {', '.join(conflicts)}")
        branch = pull["base"].removeprefix("refs/heads/")
        start, theirs = repo.commits[pull["start"]].files, repo.head(f"refs/pr/{number}").files
        base = repo.head(pull["base"])
        files = {path: entry for path, entry in base.files.items() if path in theirs or path not in start}
        files |= {path: entry for path, entry in theirs.items() if start.get(path) != entry}
        commit = new_commit(repo, base.id, f"{pull['title']} (#{number})", "", user, files)
        repo = replace(repo, commits={**repo.commits, commit.id: commit}, branches={**repo.branches, branch: commit.id})
        return self.change_discussion(repo, number, status="merged", mergeCommitId=commit.id)
