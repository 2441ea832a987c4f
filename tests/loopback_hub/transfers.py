"""How files come to a loopback Hub and go from it: announced, uploaded, verified, committed and downloaded."""

from typing import Any

from tests.loopback_hub.records import HubError, Repo, upload_mode
from tests.loopback_hub.repos import Repositories
from tests.loopback_hub.requests import Answer, Call


class Transfers:
    """The routes of files, by name: each returns a JSON value or an `Answer`, or raises `HubError`. Callers hold a lock."""

    def __init__(self, repositories: Repositories, url: str) -> None:
        """Serve repositories whose own links begin with `url`."""
        self.repos = repositories
        self.url = url
        self.promised: set[tuple[str, int]] = set()

    def _web(self, repo: Repo) -> str:
        prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
        return f"{self.url}/{prefix}{repo.id}"

    def preupload(self, call: Call) -> Any:
        contributes = call.asks("create_pr") or call.revision.startswith("refs/pr/")
        repo = (self.repos.for_contributing if contributes else self.repos.for_writing)(*call.address)
        present = repo.head(call.revision).files
        files = []
        for asked in call.body.read_json()["files"]:
            path, old = asked["path"], present.get(asked["path"])
            mode = upload_mode(path, asked["size"])
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": old and old.etag})
        return {"files": files, "commitOid": repo.head(call.revision).id}

    def lfs_batch(self, call: Call) -> Any:
        repo = self.repos.for_contributing(*call.address)
        objects: list[dict[str, Any]] = []
        for wanted in call.body.read_json()["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            objects.append({"oid": oid, "size": size})
            if not self.repos.blob(oid).exists():
                self.promised.add((oid, size))
                upload = {"href": f"{self.url}/lfs-upload/{oid}?size={size}"}
                verify = {"href": f"{self._web(repo)}.git/info/lfs/objects/verify"}
                objects[-1]["actions"] = {"upload": upload, "verify": verify}
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, call: Call) -> Any:
        oid, size = call.part["oid"], int(call.query.get("size", ["-1"])[0])
        if (oid, size) not in self.promised:
            raise HubError(403, None, "This upload was not announced by a batch.")
        if (call.body.sha256, call.body.path.stat().st_size) != (oid, size):
            raise HubError(400, None, f"The content's SHA-256 is {call.body.sha256}, not {oid}, or its size is not {size}")
        call.body.path.replace(self.repos.blob(oid))
        return {}

    def lfs_verify(self, call: Call) -> Any:
        asked = call.body.read_json()
        blob = self.repos.blob(asked["oid"])
        if not blob.exists() or blob.stat().st_size != asked["size"]:
            raise HubError(404, None, f"No such LFS object: {asked['oid']}")
        return {}

    def commit(self, call: Call) -> Any:
        repo = self.repos.find(*call.address)
        operations = call.body.read_lines()
        repo, commit, number = self.repos.commit(repo, call.revision, call.user, operations, call.asks("create_pr"))
        reply = {"success": True, "commitOid": commit.id, "commitUrl": f"{self._web(repo)}/commit/{commit.id}"}
        return reply | ({"pullRequestUrl": f"{self._web(repo)}/discussions/{number}"} if number else {})

    def resolve(self, call: Call) -> Answer:
        repo = self.repos.for_reading(*call.address)
        commit = repo.head(call.revision)
        path = call.part["path"]
        entry = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
        if entry is None:
            raise HubError(404, "EntryNotFound", f"{path} does not exist on {call.revision}", **headers)
        headers |= {"ETag": f'"{entry.etag}"', "Content-Type": "application/octet-stream"}
        if entry.lfs:
            headers |= {"X-Linked-Etag": f'"{entry.etag}"', "X-Linked-Size": str(entry.size)}
        return Answer(headers=headers, file=self.repos.blob(entry.sha256), span=(0, entry.size))
