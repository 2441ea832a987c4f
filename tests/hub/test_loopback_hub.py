"""The real clients against the loopback Hub, each in a subprocess, as they read `HF_*` when imported."""

import hashlib
import os

from tests.support.fresh_hub import hub as hub
from tests.support.fresh_hub import run as run


def test_repositories_are_made_listed_changed_and_deleted_by_those_who_may(hub, run):
    results = run("""
        url = api.create_repo("me/model", private=True)
        results = {
            "url": [url.repo_id, url.repo_type],
            "twice": caught(api.create_repo, "me/model"),
            "exist_ok": api.create_repo("me/model", exist_ok=True).repo_id,
            "dataset": api.create_repo("team/data", repo_type="dataset").repo_type,
            "short": api.create_repo("metric", repo_type="space", space_sdk="static").repo_id,
            "bare space": caught(api.create_repo, "me/bare", repo_type="space", space_sdk=None),
            "foreign": caught(api.create_repo, "other/model"),
            "nobody": caught(nobody.create_repo, "me/anonymous"),
            "reader": caught(reader.create_repo, "me/read"),
            "reader exist_ok": reader.create_repo("me/model", exist_ok=True).repo_id,
            "reader writes": caught(
                reader.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id="me/model"
            ),
            "other writes": caught(
                other.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id="me/metric", repo_type="space"
            ),
            "team": other.upload_file(
                path_or_fileobj=b"x", path_in_repo="x", repo_id="team/data", repo_type="dataset"
            ).repo_url.repo_id,
            "expired": caught(expired.model_info, "me/model"),
            "expired whoami": caught(expired.whoami),
        }
        who = api.whoami()
        results["whoami"] = [who["name"], who["orgs"][0]["name"], who["auth"]["accessToken"]["role"]]
        api.update_repo_settings("me/model", gated="manual", private=False)
        info = api.model_info("me/model", files_metadata=True)
        results["info"] = [info.id, info.author, info.private, info.gated, [s.rfilename for s in info.siblings]]
        results["sdk"] = api.space_info("me/metric").sdk
        results["exists"] = [api.repo_exists("me/model"), api.repo_exists("me/none"), api.file_exists("me/model", "none")]
        results["files"] = api.list_repo_files("me/model")
        api._validate_yaml("---\\nlicense: mit\\ntags:\\n- a\\n---\\n# Card")
        results["yaml"] = caught(api._validate_yaml, "---\\nlicense mit\\n---\\n")
        api.delete_repo("me/model")
        results["deleted"] = [caught(api.delete_repo, "me/model"), api.delete_repo("me/model", missing_ok=True)]
        print(json.dumps(results))
    """)
    assert results == {
        "url": ["me/model", "model"],
        "twice": ["HfHubHTTPError", 409],
        "exist_ok": "me/model",
        "dataset": "dataset",
        "short": "me/metric",
        "bare space": ["ValueError", None],
        "foreign": ["HfHubHTTPError", 403],
        "nobody": ["HfHubHTTPError", 401],
        "reader": ["HfHubHTTPError", 403],
        "reader exist_ok": "me/model",
        "reader writes": ["HfHubHTTPError", 403],
        "other writes": ["HfHubHTTPError", 403],
        "team": "team/data",
        "expired": ["HfHubHTTPError", 401],
        "expired whoami": ["HfHubHTTPError", 401],
        "whoami": ["me", "team", "write"],
        "info": ["me/model", "me", False, "manual", [".gitattributes"]],
        "sdk": "static",
        "exists": [True, False, False],
        "files": [".gitattributes"],
        "yaml": ["ValueError", None],
        "deleted": [["RepositoryNotFoundError", 404], None],
    }
    assert hub.unknown == []


def test_a_folder_comes_back_byte_by_byte_and_only_changes_are_sent(hub, run, tmp_path):
    pushed = {
        "README.md": b"---\nlicense: mit\n---\n# Card\n",
        "model.safetensors": os.urandom(3_000_000),
        "a folder/deep/weights.bin": b"small, yet stored as LFS",
        "a folder/large.jsonl": b"x" * 1_000_001,
        "empty.bin": b"",
        "c\u00b2.txt": "course-correction: C\u00b2".encode(),
    }
    for name, content in pushed.items():
        (tmp_path / "push" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "push" / name).write_bytes(content)
    results = run("""
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
        from huggingface_hub.utils import get_session

        api.create_repo("me/model")
        first = api.upload_folder(repo_id="me/model", folder_path="push", commit_message="Push")
        again = api.upload_folder(repo_id="me/model", folder_path="push")
        results = {"same": again.oid == first.oid, "url": first.commit_url.endswith(first.oid)}
        got = Path(snapshot_download("me/model"))
        results["snapshot"] = {str(p.relative_to(got)): p.read_bytes().hex() for p in got.rglob("*") if p.is_file()}
        url = hf_hub_url("me/model", "model.safetensors")
        metadata = get_hf_file_metadata(url)
        results["metadata"] = [metadata.commit_hash == first.oid, metadata.etag, metadata.size]
        part = get_session().get(url, headers={"Range": "bytes=10-19"})
        results["range"] = [part.status_code, part.content.hex(), part.headers["Content-Range"]]
        results["beyond"] = get_session().get(url, headers={"Range": "bytes=3000000-"}).status_code
        results["top"] = sorted(entry.path for entry in api.list_repo_tree("me/model"))
        deep = list(api.list_repo_tree("me/model", "a folder", recursive=True, expand=True))
        results["deep"] = {e.path: e.lfs.size if getattr(e, "lfs", None) else None for e in deep}
        results["deep titles"] = sorted({e.last_commit.title for e in deep})
        infos = api.get_paths_info("me/model", ["README.md", "a folder", "none"], expand=True)
        results["paths"] = [i.path for i in infos]
        operations = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("a folder/", is_folder=True)]
        change = api.create_commit("me/model", operations, commit_message="Change", parent_commit=first.oid)
        operations = [CommitOperationAdd("late.txt", b"late")]
        results["late"] = caught(
            api.create_commit, "me/model", operations, commit_message="Late", parent_commit=first.oid[:7]
        )
        results["gone"] = caught(api.delete_file, "none.txt", "me/model")
        results["titles"] = [c.title for c in api.list_repo_commits("me/model")]
        old = hf_hub_download("me/model", "a folder/deep/weights.bin", revision=first.oid)
        results["old"] = Path(old).read_text()
        results["entry"] = caught(hf_hub_download, "me/model", "a folder/deep/weights.bin")
        results["revision"] = caught(hf_hub_download, "me/model", "README.md", revision="none")
        results["repo"] = caught(hf_hub_download, "me/none", "README.md")
        results["verified"] = len(api.verify_repo_checksums("me/model", revision=first.oid).mismatches)
        print(json.dumps(results))
    """)
    weights = pushed["model.safetensors"]
    snapshot = {name: bytes.fromhex(content) for name, content in results.pop("snapshot").items()}
    assert snapshot.pop(".gitattributes").startswith(b"*.safetensors filter=lfs")
    assert snapshot == pushed
    assert results == {
        "same": True,
        "url": True,
        "metadata": [True, hashlib.sha256(weights).hexdigest(), 3_000_000],
        "range": [206, weights[10:20].hex(), "bytes 10-19/3000000"],
        "beyond": 416,
        "top": sorted([".gitattributes", "README.md", "a folder", "c\u00b2.txt", "empty.bin", "model.safetensors"]),
        "deep": {"a folder/deep": None, "a folder/deep/weights.bin": 24, "a folder/large.jsonl": 1_000_001},
        "deep titles": ["Push"],
        "paths": ["README.md", "a folder"],
        "late": ["HfHubHTTPError", 412],
        "gone": ["RemoteEntryNotFoundError", 404],
        "titles": ["Change", "Push", "initial commit"],
        "old": "small, yet stored as LFS",
        "entry": ["RemoteEntryNotFoundError", 404],
        "revision": ["RevisionNotFoundError", 404],
        "repo": ["RepositoryNotFoundError", 404],
        "verified": 0,
    }
    kept = hub.files("model", "me/model")
    assert {name for name in kept if name != ".gitattributes"} == {
        "README.md",
        "model.safetensors",
        "empty.bin",
        "c\u00b2.txt",
        "new.txt",
    }
    assert len([request for request in hub.requests if request.startswith("PUT /lfs-upload/")]) == 3
    assert hub.unknown == []


def test_branches_and_pull_requests_carry_changes_until_they_are_merged(hub, run):
    results = run("""
        api.create_repo("me/data", repo_type="dataset")
        on = {"repo_id": "me/data", "repo_type": "dataset"}
        api.create_branch(**on, branch="v2/next")
        results = {"twice": caught(api.create_branch, **on, branch="v2/next")}
        api.create_branch(**on, branch="v2/next", exist_ok=True)
        api.upload_file(**on, path_or_fileobj=b"2", path_in_repo="two.txt", revision="v2/next")
        results["two"] = [api.file_exists(**on, filename="two.txt", revision=r) for r in ("main", "v2/next")]
        mine = api.upload_file(**on, path_or_fileobj=b"1", path_in_repo="a.txt", create_pr=True, commit_message="Mine")
        results["mine"] = [mine.pr_num, mine.pr_revision, mine.pr_url.endswith("/datasets/me/data/discussions/1")]
        api.upload_file(**on, path_or_fileobj=b"P", path_in_repo="data.parquet", revision="refs/pr/1")
        theirs = other.create_commit(
            **on, operations=[CommitOperationAdd("b.txt", b"B")], commit_message="Theirs", create_pr=True
        )
        results["on main"] = api.list_repo_files(**on)
        results["on theirs"] = api.list_repo_files(**on, revision=theirs.pr_revision)
        results["open"] = [[d.num, d.title, d.author, d.status] for d in api.get_repo_discussions(**on)]
        details = api.get_discussion_details(**on, discussion_num=2)
        results["details"] = [details.is_pull_request, details.target_branch, details.conflicting_files]
        results["forbidden"] = caught(other.merge_pull_request, **on, discussion_num=2)
        api.merge_pull_request(**on, discussion_num=1)
        results["again"] = caught(api.merge_pull_request, **on, discussion_num=1)
        results["merged"] = api.list_repo_files(**on)
        api.comment_discussion(**on, discussion_num=2, comment="No, thanks")
        api.change_discussion_status(**on, discussion_num=2, new_status="closed")
        results["events"] = [e.type for e in api.get_discussion_details(**on, discussion_num=2).events]
        refs = api.list_repo_refs(**on, include_pull_requests=True)
        results["refs"] = [[b.name for b in refs.branches], [p.ref for p in refs.pull_requests]]
        api.delete_branch(**on, branch="v2/next")
        results["deleted"] = [caught(api.delete_branch, **on, branch=b) for b in ("v2/next", "main")]
        api.create_tag(**on, tag="v1")
        results["tag"] = api.list_repo_files(**on, revision="v1")
        results["draft"] = api.create_pull_request(**on, title="Later").status
        print(json.dumps(results))
    """)
    assert results == {
        "twice": ["HfHubHTTPError", 409],
        "two": [False, True],
        "mine": [1, "refs/pr/1", True],
        "on main": [".gitattributes"],
        "on theirs": [".gitattributes", "b.txt"],
        "open": [[2, "Theirs", "other", "open"], [1, "Mine", "me", "open"]],
        "details": [True, "refs/heads/main", []],
        "forbidden": ["HfHubHTTPError", 403],
        "again": ["BadRequestError", 400],
        "merged": [".gitattributes", "a.txt", "data.parquet"],
        "events": ["comment", "comment", "status-change"],
        "refs": [["main", "v2/next"], ["refs/pr/1", "refs/pr/2"]],
        "deleted": [["RevisionNotFoundError", 404], ["HfHubHTTPError", 403]],
        "tag": [".gitattributes", "a.txt", "data.parquet"],
        "draft": "draft",
    }
    assert hub.commits("dataset", "me/data")[0][1] == "Mine (#1)"
    shown = [
        (d["num"], d["title"], d["status"], d["base"], d["author"]) for d in hub.repo("dataset", "me/data")["discussions"]
    ]
    assert shown[:2] == [(1, "Mine", "merged", "refs/heads/main", "me"), (2, "Theirs", "closed", "refs/heads/main", "other")]
    assert hub.unknown == []


def test_private_repositories_are_hidden_and_gated_ones_give_no_files_away(hub, run):
    results = run("""
        def attempts(action, **options):
            return [
                caught(action, **options, token=token)
                for token in ("hf_loopback_expired", False, "hf_loopback_other", "hf_loopback_reader")
            ]

        api.create_repo("me/secret", private=True)
        api.upload_file(path_or_fileobj=b"s", path_in_repo="s.bin", repo_id="me/secret")
        api.create_repo("me/gated")
        api.upload_file(path_or_fileobj=b"g", path_in_repo="g.bin", repo_id="me/gated")
        api.update_repo_settings("me/gated", gated="auto")
        results = {
            "info": attempts(api.model_info, repo_id="me/secret"),
            "secret": attempts(api.hf_hub_download, repo_id="me/secret", filename="s.bin"),
            "gated": attempts(api.hf_hub_download, repo_id="me/gated", filename="g.bin"),
            "gated info": caught(other.model_info, "me/gated"),
            "write": caught(other.upload_file, path_or_fileobj=b"s", path_in_repo="s.bin", repo_id="me/secret"),
        }
        print(json.dumps(results))
    """)
    missing, gated = "RepositoryNotFoundError", "GatedRepoError"
    assert results["info"] == [["HfHubHTTPError", 401], [missing, 401], [missing, 404], None]
    assert results["secret"] == results["info"]
    assert results["gated"] == [["HfHubHTTPError", 401], [gated, 401], [gated, 403], None]
    assert results["gated info"] is None
    assert results["write"] == [missing, 404]
    assert hub.unknown == []
