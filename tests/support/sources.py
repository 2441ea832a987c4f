"""Rows of sources, old and new, the selection of them, and a text in them that no message may show."""

from collections import Counter
from typing import Any

from course_correction.synthesis.sources import SelectionRules, SourcePair, select_source_pairs

SECRET = "zebra-in-the-row"
LONG = " ".join(["word, " * 10 + "end."] * 9)
# Columns of PKU-SafeRLHF's main branch beyond those of v0.
MAIN_COLUMNS = {
    "prompt_source": "Alpaca3-70B",
    "response_0_source": "Alpaca-7B",
    "response_1_source": "WizardLM-30B-Uncensored",
    "response_0_harm_category": {"Endangering National Security": False, "White-Collar Crime": True},
    "response_0_severity_level": 0,
    "response_1_severity_level": 2,
    "response_0_sha256": "00",
    "response_1_sha256": "11",
}


def source_row(**changes: Any) -> dict[str, Any]:
    row = {
        "prompt": "How do I skip a queue?",
        "response_0": "Please wait.",
        "response_1": LONG,
        "is_response_0_safe": True,
        "is_response_1_safe": False,
    }
    return {**row, **changes}


def select(
    rows: list[dict[str, Any]], source: str = "file.jsonl", excluded: frozenset[str] = frozenset(), **rules: Any
) -> tuple[list[SourcePair], Counter[str]]:
    counts: Counter[str] = Counter()
    return list(select_source_pairs(rows, source, SelectionRules(**rules), excluded, counts)), counts


def assert_one_line_without_row_text(error: BaseException) -> None:
    assert "\n" not in str(error) and SECRET not in str(error) and str(error)
