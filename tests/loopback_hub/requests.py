"""What a loopback Hub can be asked, and the forms of a call and of its answer. Knows nothing of sockets."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.loopback_hub.records import TOKENS, HubError, User

_ID = r"(?P<id>[^/]+(?:/[^/]+)?)"
_REPO = rf"/api/(?P<kind>models|datasets|spaces)/{_ID}"
_GIT = rf"/(?:(?P<kind>datasets|spaces)/)?{_ID}"
_REVISION = r"(?P<revision>refs/(?:pr|heads|tags)/[^/]+|[^/]+)"
_NUMBER = r"/discussions/(?P<number>\d+)"
ROUTES = [
    (method, re.compile(pattern), name)
    for method, pattern, name in [
        ("POST", r"/api/repos/create", "create_repo"),
        ("DELETE", r"/api/repos/delete", "delete_repo"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("PUT", rf"{_REPO}/settings", "update_settings"),
        ("GET", rf"{_REPO}/auth-check(?P<write>/write)?", "auth_check"),
        ("GET", rf"{_REPO}/refs", "list_refs"),
        ("GET", rf"{_REPO}/tree/{_REVISION}(?:/(?P<path>.*))?", "list_tree"),
        ("POST", rf"{_REPO}/paths-info/{_REVISION}", "paths_info"),
        ("GET", rf"{_REPO}/commits/{_REVISION}", "list_commits"),
        ("POST", rf"{_REPO}/preupload/{_REVISION}", "preupload"),
        ("POST", rf"{_REPO}/commit/{_REVISION}", "commit"),
        ("POST", rf"{_REPO}/branch/(?P<name>[^/]+)", "create_branch"),
        ("DELETE", rf"{_REPO}/branch/(?P<name>[^/]+)", "delete_branch"),
        ("POST", rf"{_REPO}/tag/{_REVISION}", "create_tag"),
        ("DELETE", rf"{_REPO}/tag/(?P<name>[^/]+)", "delete_tag"),
        ("GET", rf"{_REPO}/discussions", "list_discussions"),
        ("POST", rf"{_REPO}/discussions", "create_discussion"),
        ("GET", rf"{_REPO}{_NUMBER}", "discussion_details"),
        ("POST", rf"{_REPO}{_NUMBER}/(?P<change>comment|status|title)", "change_discussion"),
        ("POST", rf"{_REPO}{_NUMBER}/merge", "merge_pull_request"),
        ("GET", rf"{_REPO}(?:/revision/{_REVISION})?", "repo_info"),
        ("POST", rf"{_GIT}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("POST", rf"{_GIT}\.git/info/lfs/objects/verify", "lfs_verify"),
        ("PUT", r"/lfs-upload/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
        ("GET", rf"{_GIT}/resolve/{_REVISION}/(?P<path>.+)", "resolve"),
    ]
]


@dataclass(frozen=True)
class Body:
    """A request's body on disk, with its SHA-256."""

    path: Path
    sha256: str

    def read_json(self) -> Any:
        """Return the value of a JSON body, `{}` of an empty one."""
        try:
            return json.loads(self.path.read_bytes() or b"{}")
        except ValueError as error:
            raise HubError(400, None, f"The body is not JSON: {error}") from error

    def read_lines(self) -> Iterator[Any]:
        """Yield the values of a newline-delimited JSON body, one in memory at a time."""
        with self.path.open("rb") as lines:
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise HubError(400, None, f"A line of the body is not JSON: {error}") from error


@dataclass(frozen=True)
class Call:
    """A request with a known route: `part` holds the route's groups, decoded."""

    user: User
    part: dict[str, str]
    query: dict[str, list[str]]
    body: Body

    @property
    def kind(self) -> str:
        """The repository's type: model, dataset or space."""
        return self.part.get("kind", "models").removesuffix("s")

    @property
    def address(self) -> tuple[str, str, User]:
        """What the repositories are asked for."""
        return self.kind, self.part["id"], self.user

    @property
    def revision(self) -> str:
        """The revision of the route, main where it has none."""
        return self.part.get("revision", "main")

    def asks(self, name: str) -> bool:
        """Whether a flag of the query is set."""
        return self.query.get(name, ["0"])[-1].lower() in ("1", "true")


@dataclass(frozen=True)
class Answer:
    """A response: JSON, or a part of a file."""

    status: int = 200
    value: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    span: tuple[int, int] = (0, 0)


def user_of(authorization: str | None) -> User:
    """Return whom an Authorization header stands for."""
    token = (authorization or "").removeprefix("Bearer ").strip()
    if token and token not in TOKENS:
        raise HubError(401, None, "Invalid credentials in Authorization header")
    return TOKENS.get(token, User())
