"""One citation: CITATION.cff, the BibTeX entry of the cards, and every document that repeats it agree."""

import re

import yaml

from tests.support.rows import ROOT

TEMPLATES = ROOT / "course_correction" / "hub" / "templates"
BIBTEX = (TEMPLATES / "citation.bib").read_text(encoding="utf-8").strip()
# Written by hand, or exported from a template.
DOCUMENTS = (
    "README.md",
    "metrics/corr_at_k/README.md",
    "metrics/corr_at_k/corr_at_k.py",
    "c2-syn/README.md",
    "c2-eval/README.md",
)


def bibtex_fields(entry: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)\s*=\s*\{(.*?)\},?\s*(?=\n|\})", entry))


def test_citation_cff_and_the_cards_bibtex_state_the_same_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper, fields = citation["preferred-citation"], bibtex_fields(BIBTEX)
    authors = [
        f"{author['family-names']}, {author['given-names']}" if "family-names" in author else author["name"]
        for author in paper["authors"]
    ]
    assert fields == {
        "title": paper["title"],
        "author": " and ".join(authors),
        "booktitle": paper["collection-title"],
        "year": str(paper["year"]),
        "eprint": paper["identifiers"][0]["value"].removeprefix("arXiv:"),
        "archivePrefix": "arXiv",
    }
    assert paper["url"].endswith(fields["eprint"])


def test_citation_cff_states_the_version_and_licence_of_the_package():
    import tomllib

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["authors"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_every_other_bibtex_entry_is_the_cards_entry():
    for name in DOCUMENTS:
        for entry in re.findall(r"@\w+\{.*?^\s*\}", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            assert bibtex_fields(entry) == bibtex_fields(BIBTEX), name
    for template in TEMPLATES.glob("*.md"):
        text = template.read_text(encoding="utf-8")
        assert "@inproceedings" not in text, f"{template.name} repeats the entry: write {{{{ citation }}}} instead"
        assert "{{ citation }}" in text, f"{template.name} has no citation"
