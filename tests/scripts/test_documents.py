"""The documents: their links and paths exist, the README is short, and they use the project's vocabulary."""

import re
from pathlib import Path

import pytest

from tests.support.rows import ROOT

CARD_TEMPLATES = [ROOT / "dataset_card.md", *sorted((ROOT / "course_correction/hub/templates").glob("*.md"))]
GUIDES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md", "integrations/README.md")
    ),
    *sorted((ROOT / "docs").glob("*.md")),
    *(path for path in (ROOT / "data/README.md", ROOT / "course_correction/data/README.md") if path.is_file()),
    ROOT / "metrics/corr_at_k/README.md",
]
DOCUMENTS = [*GUIDES, *CARD_TEMPLATES, ROOT / "c2-syn/README.md", ROOT / "c2-eval/README.md"]
BANNED = (
    "turn back", "turns back", "turned back", "turning back", "take back", "takes back", "taken back", "go on", "goes on",
    "said", "begun", "worth", "the like", "into the model's mouth", "as it stands",
)  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(document: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text()))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("document", GUIDES, ids=name_of)
def test_every_relative_link_has_a_target(document):
    for target in links(document):
        file, _, anchor = target.partition("#")
        linked = (document.parent / file).resolve() if file else document
        assert linked.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(linked), f"{target}: no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_path_in_backticks_exists(document):
    """A path of the repository: it has a slash, and its first part is a folder of the root or beside the document."""
    for span in re.findall(r"`([\w.\-]+/[\w.\-/]*)`", without_code(document.read_text())):
        first = span.split("/")[0]
        for folder in (ROOT, document.parent):
            if (folder / first).is_dir() and first != "runs":
                assert any((base / span).exists() for base in (ROOT, document.parent)), f"{span} does not exist"


def test_the_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_documents_use_no_banned_words(document):
    # Blocks of JSON show data, whose wording is fixed.
    text = re.sub(r"^```json.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = " ".join(text.split()).lower()
    assert [words for words in BANNED if re.search(rf"\b{re.escape(words)}\b", text)] == []
