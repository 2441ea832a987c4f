"""The 500 C²-Eval items of the reference: downloaded once at a pinned commit, checked at each use."""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

from course_correction.base.errors import UsageError
from course_correction.base.files import cache_folder, write_atomically

PKU500 = "pku500"
PKU500_URL = "https://raw.githubusercontent.com/pillowsofwind/Course-Correction/{commit}/eval/test.jsonl"
# The last commit that changed the file; its content at 44da12c is the same.
PKU500_COMMIT = "e30c9748c19225d947ad305f922eb73d31c23a2f"
PKU500_SHA256 = "a9f22982e3f7f56309db81a56c532f556ec4d42356823ebb10f98d21a3c6e5c3"


def fetch_url(url: str, instead: str = "Fetch it by hand and give its path.") -> bytes:
    """Return the content behind a URL.

    Raises:
        UsageError: If the URL cannot be read. The message ends with `instead`, the remedy.
    """
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise UsageError(f"{url} cannot be fetched ({getattr(error, 'reason', error)}). {instead}") from None


def fetch_pku500(local_file: str | None = None) -> Path:
    """Return the path of the items, after a check of their sha256; download them unless `local_file` or the cache has them.

    Raises:
        UsageError: If the file cannot be fetched, or does not have the expected sha256.
    """
    path = Path(local_file) if local_file else cache_folder() / f"c2-eval-{PKU500_SHA256[:12]}.jsonl"
    if path.exists():
        name, content = str(path), path.read_bytes()
    elif local_file:
        raise UsageError(f"There is no file {local_file}. Check --pku500_file.")
    else:
        name = PKU500_URL.format(commit=PKU500_COMMIT)
        content = fetch_url(name, "Fetch the file by hand and give its path with --pku500_file.")
    digest = hashlib.sha256(content).hexdigest()
    if digest != PKU500_SHA256:
        raise UsageError(
            f"{name} is not the reference's test.jsonl: its sha256 is {digest}, expected {PKU500_SHA256}. Download it again."
        )
    if not path.exists():
        write_atomically(path, content)
    return path
