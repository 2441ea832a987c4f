"""What each request to a loopback Hub means for its repositories, but for their files. Knows nothing of sockets."""

import hashlib
import json
import re
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.loopback_hub.records import ORGANISATION, Commit, Entry, HubError, Repo, comment_data, new_event
from tests.loopback_hub.requests import ROUTES, Answer, Body, Call, user_of
from tests.loopback_hub.transfers import Transfers


class Api(Transfers):
    """The routes, by name: each returns a JSON value or an `Answer`, or raises `HubError`. Callers hold a lock."""

    def answer(self, line: str, query: str, authorization: str | None, body: Body) -> Answer | None:
        """Return the answer to `METHOD /path`, or nothing where no route fits."""
        method, path = line.split(" ", 1)
        try:
            user = user_of(authorization)
            for route_method, pattern, name in ROUTES:
                match = pattern.fullmatch(path)
                if match and method.replace("HEAD", "GET") == route_method:
                    part = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    value = getattr(self, name)(Call(user, part, parse_qs(query), body))
                    return value if isinstance(value, Answer) else Answer(value=value)
        except HubError as error:
            headers = {"X-Error-Code": error.code} if error.code else {}
            return Answer(error.status, {"error": str(error)}, {**headers, "X-Error-Message": str(error), **error.headers})
        return None

    def whoami(self, call: Call) -> Any:
        if not call.user.name:
            raise HubError(401, None, "Invalid username or password.")
        identity = {"id": hashlib.sha1(call.user.name.encode()).hexdigest()[:24], "name": call.user.name}
        token = {"displayName": "loopback", "role": call.user.role}
        organisation = {"type": "org", "name": ORGANISATION, "fullname": ORGANISATION, "roleInOrg": "write"}
        auth = {"type": "access_token", "accessToken": token}
        return {"type": "user", **identity, "fullname": call.user.name, "orgs": [organisation], "auth": auth}

    def validate_yaml(self, call: Call) -> Any:
        errors, warnings = check_card(call.body.read_json().get("content", ""))
        reply = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
        return Answer(400 if errors else 200, reply)

    def create_repo(self, call: Call) -> Any:
        asked = call.body.read_json()
        if not call.user.name:
            raise HubError(401, None, "Invalid username or password.")
        kind = asked.get("type") or "model"
        repo_id = f"{asked.get('organization') or call.user.name}/{asked.get('name')}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        try:
            repo = self.repos.create(kind, repo_id, call.user, private, asked.get("sdk"))
        except HubError as error:
            if error.status != 409:
                raise
            existing = self.repos.get(kind, repo_id)
            return Answer(409, {"error": str(error), "url": self._web(existing)}, {"X-Error-Message": str(error)})
        return {"url": self._web(repo), "name": repo.id, "id": repo.id}

    def delete_repo(self, call: Call) -> Any:
        asked = call.body.read_json()
        repo_id = f"{asked.get('organization') or call.user.name}/{asked.get('name')}"
        self.repos.delete(self.repos.for_writing(asked.get("type") or "model", repo_id, call.user))
        return {}

    def update_settings(self, call: Call) -> Any:
        repo, asked = self.repos.for_writing(*call.address), call.body.read_json()
        private = asked["visibility"] == "private" if "visibility" in asked else asked.get("private", repo.private)
        self.repos.keep(replace(repo, private=private, gated=asked.get("gated", repo.gated)))
        return {}

    def auth_check(self, call: Call) -> Any:
        (self.repos.for_writing if "write" in call.part else self.repos.for_reading)(*call.address)
        return {}

    def repo_info(self, call: Call) -> Any:
        repo = self.repos.find(*call.address)
        commit = repo.head(call.revision)
        blobs = call.asks("blobs")
        siblings = [
            {"rfilename": path} | ({"size": entry.size, "blobId": entry.oid, **entry.lfs_fields("sha256")} if blobs else {})
            for path, entry in sorted(commit.files.items())
        ]
        space = {"sdk": repo.sdk, "subdomain": repo.id.replace("/", "-")} if repo.kind == "space" else {}
        return {
            "_id": hashlib.sha1(f"{repo.kind} {repo.id}".encode()).hexdigest()[:24],
            "id": repo.id,
            "author": repo.namespace,
            "sha": commit.id,
            "createdAt": repo.created,
            "lastModified": commit.date,
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
            **space,
        }

    def list_refs(self, call: Call) -> Any:
        repo = self.repos.find(*call.address)

        def describe(prefix: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": prefix + n, "targetCommit": commit} for n, commit in sorted(refs.items())]

        listed = {
            "branches": describe("refs/heads/", repo.branches),
            "tags": describe("refs/tags/", repo.tags),
            "converts": [],
        }
        return listed | ({"pullRequests": describe("refs/pr/", repo.pulls)} if call.asks("include_prs") else {})

    def list_tree(self, call: Call) -> Any:
        repo = self.repos.find(*call.address)
        commit = repo.head(call.revision)
        below = call.part.get("path", "").strip("/")
        below = below and below + "/"
        entries = tree_entries(commit)
        listed = [path for path in entries if path.startswith(below)]
        if below and not listed:
            headers = {"X-Repo-Commit": commit.id}
            raise HubError(404, "EntryNotFound", f"{below[:-1]} does not exist on {call.revision}", **headers)
        if not call.asks("recursive"):
            listed = [path for path in listed if "/" not in path[len(below) :]]
        return [_describe_entry(repo, commit, path, entries[path], call.asks("expand")) for path in sorted(listed)]

    def paths_info(self, call: Call) -> Any:
        repo = self.repos.find(*call.address)
        commit = repo.head(call.revision)
        content = call.body.path.read_text(encoding="utf-8")
        asked = json.loads(content) if content.startswith("{") else parse_qs(content)
        expand = str(asked.get("expand", False)).strip("[']").lower() == "true"
        entries = tree_entries(commit)
        paths = [path.strip("/") for path in asked.get("paths", [])]
        return [_describe_entry(repo, commit, path, entries[path], expand) for path in paths if path in entries]

    def list_commits(self, call: Call) -> Any:
        repo = self.repos.find(*call.address)
        return [
            {"id": c.id, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
            for c in repo.history(repo.head(call.revision))
        ]

    def create_branch(self, call: Call) -> Any:
        repo, name = self.repos.for_writing(*call.address), call.part["name"]
        if name.startswith("refs/"):
            raise HubError(400, None, f"Invalid reference for a branch: {name}")
        if name in repo.branches:
            raise HubError(409, None, f"Reference already exists: {name}")
        start = repo.head(call.body.read_json().get("startingPoint") or "main").id
        self.repos.keep(replace(repo, branches={**repo.branches, name: start}))
        return {}

    def delete_branch(self, call: Call) -> Any:
        repo, name = self.repos.for_writing(*call.address), call.part["name"]
        if name == "main":
            raise HubError(403, None, "The branch main cannot be deleted")
        if name not in repo.branches:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {name}")
        self.repos.keep(replace(repo, branches={n: c for n, c in repo.branches.items() if n != name}))
        return {}

    def create_tag(self, call: Call) -> Any:
        repo, name = self.repos.for_writing(*call.address), call.body.read_json()["tag"]
        if name in repo.tags:
            raise HubError(409, None, f"Tag already exists: {name}")
        self.repos.keep(replace(repo, tags={**repo.tags, name: repo.head(call.revision).id}))
        return {}

    def delete_tag(self, call: Call) -> Any:
        repo, name = self.repos.for_writing(*call.address), call.part["name"]
        if name not in repo.tags:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {name}")
        self.repos.keep(replace(repo, tags={n: c for n, c in repo.tags.items() if n != name}))
        return {}

    def list_discussions(self, call: Call) -> Any:
        repo = self.repos.find(*call.address)
        kind, status, author = (call.query.get(name, ["all"])[0] for name in ("type", "status", "author"))
        listed = [
            one
            for one in (self._describe_discussion(repo, d["num"]) for d in reversed(repo.discussions))
            if kind in ("all", "pull_request" if one["isPullRequest"] else "discussion")
            and status in ("all", "closed" if one["status"] in ("closed", "merged") else "open")
            and author in ("all", one["author"]["name"])
        ]
        return {"discussions": listed, "count": len(listed), "start": 0}

    def _describe_discussion(self, repo: Repo, number: int) -> dict[str, Any]:
        discussion = repo.discussion(number)
        reply = {name: discussion[name] for name in ("num", "title", "status", "isPullRequest", "createdAt", "events")}
        reply |= {"author": {"name": discussion["author"]}, "repo": {"name": repo.id, "type": repo.kind}}
        if discussion["isPullRequest"]:
            reply["changes"] = {"base": discussion["base"], "mergeCommitId": discussion["mergeCommitId"]}
            reply["filesWithConflicts"] = [] if discussion["status"] == "merged" else self.repos.conflicts(repo, number)
        return reply

    def discussion_details(self, call: Call) -> Any:
        return self._describe_discussion(self.repos.find(*call.address), int(call.part["number"]))

    def create_discussion(self, call: Call) -> Any:
        repo, asked = self.repos.for_contributing(*call.address), call.body.read_json()
        base, head = ("refs/heads/main", repo.head("main")) if asked.get("pullRequest") else (None, None)
        repo = self.repos.discuss(repo, call.user, asked["title"], asked.get("description") or "", base, head)
        return {"num": len(repo.discussions), "pullRequest": base is not None}

    def change_discussion(self, call: Call) -> Any:
        number, change, asked = int(call.part["number"]), call.part["change"], call.body.read_json()
        repo = self.repos.for_contributing(*call.address)
        old = repo.discussion(number)
        if change != "comment" and old["author"] != call.user.name:
            self.repos.for_writing(*call.address)
        key, kind, data = {
            "comment": ("newMessage", "comment", comment_data(call.user, asked.get("comment", ""))),
            "status": ("newStatus", "status-change", {"status": asked.get("status")}),
            "title": ("newTitle", "title-change", {"from": old["title"], "to": asked.get("title")}),
        }[change]
        event = new_event(old, call.user, kind, data)
        fields = {} if change == "comment" else {change: asked[change]}
        self.repos.change_discussion(repo, number, events=[*old["events"], event], **fields)
        return {key: event}

    def merge_pull_request(self, call: Call) -> Any:
        self.repos.merge(self.repos.for_writing(*call.address), int(call.part["number"]), call.user)
        return {}


def tree_entries(commit: Commit) -> dict[str, Entry | str]:
    """Return the files of a commit and its folders, each folder by the id of its tree."""
    entries: dict[str, Entry | str] = dict(commit.files)
    digests: dict[str, Any] = {}
    for path, entry in sorted(commit.files.items()):
        for end in re.finditer("/", path):
            digests.setdefault(path[: end.start()], hashlib.sha1()).update(f"{path} {entry.oid}\n".encode())
    return entries | {path: digest.hexdigest() for path, digest in digests.items()}


def _describe_entry(repo: Repo, commit: Commit, path: str, entry: Entry | str, expand: bool) -> dict[str, Any]:
    if isinstance(entry, str):
        reply: dict[str, Any] = {"type": "directory", "oid": entry, "size": 0, "path": path}
    else:
        reply = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path, **entry.lfs_fields("oid")}
    if expand:
        last = repo.last_change(commit, path)
        reply["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
    return reply


def check_card(content: str) -> tuple[list[str], list[str]]:
    """Return the errors and warnings of a card's metadata: its frame and the shape of its lines, not all of YAML."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)(?:^---[ \t]*$|\Z)", content, re.DOTALL | re.MULTILINE)
    if not match or not match[1].strip():
        return [], ["empty or missing yaml metadata in repo card"]
    if match.end() == len(content) and not content.rstrip().endswith("\n---"):
        return ["The metadata has no closing ---"], []
    errors = [
        f"Line {number} of the metadata is no `key: value`: {line!r}"
        for number, line in enumerate(match[1].splitlines(), start=2)
        if line.startswith("\t") or (line and not re.match(r"[ #]|- |-$|[\w.'\"/-]+ *:( |$)|[\]}]", line))
    ]
    return errors, []
