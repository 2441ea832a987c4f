"""The data of the tasks `c2_general` for lm-evaluation-harness: easy questions, and harmless answers with their prompts."""

from collections.abc import Sequence
from typing import Any

from course_correction.base.files import read_jsonl
from course_correction.synthesis.sources import DATA_FOLDER, read_benign_rows


def load_questions(**_: Any) -> dict[str, Any]:
    """Return the split `test`: the questions with their four choices. The harness gives its metadata, which nobody reads."""
    from datasets import Dataset

    return {"test": Dataset.from_list(list(read_jsonl(DATA_FOLDER / "general_questions.jsonl")))}


def load_benign_answers(**_: Any) -> dict[str, Any]:
    """Return the split `test`: the held-out harmless prompts with their answers."""
    from datasets import Dataset

    rows = read_benign_rows("eval")
    return {"test": Dataset.from_list([{name: row[name] for name in ("request_id", "prompt", "response")} for row in rows])}


def count_words(document: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Return an answer's log-likelihood and its words: by words, tokenizers can be compared."""
    ((loglikelihood, _),) = results
    return {"word_perplexity": (loglikelihood, len(document["response"].split()))}
