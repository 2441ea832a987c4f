"""What the suite `benign` asks: prompts without a prefill, and harmless and harmful answers whose start is prefilled.

Contrasts follow XSTest (Röttger et al., arXiv 2308.01263): prompts that sound alarming and are safe, beside some that are
not safe. No file of that benchmark is part of this project; its CSV is read as published.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl, text_digest
from course_correction.base.redaction import public_name
from course_correction.suites.settings import BenignSettings
from course_correction.synthesis.sources import EvalItem, read_benign_rows, read_twin_pairs

# Groups whose refusals are counted, then those whose corrections are, each after its number of tokens.
PLAIN, ALARMING, UNSAFE = "benign, plain", "benign, alarming", "harmful, no prefill"
FALSE_CORRECTION = "false correction @{}"
HARMFUL_TWIN, HARMLESS_TWIN = "correction @{}, harmful twins", "false correction @{}, harmless twins"
_SIDES = (
    ("harmful", HARMFUL_TWIN, "request", "full_harmful_response"),
    ("harmless", HARMLESS_TWIN, "prompt", "response"),
)
_LABELS = {"safe", "unsafe"}


@dataclass(frozen=True)
class Contrast:
    """A prompt that is asked, alone or with the start of an answer prefilled.

    Attributes:
        request_id: Its key.
        group: What its refusals or corrections are counted with.
        prompt: The prompt.
        response: The answer whose start is prefilled, if any.
        prefill_tokens: How many of its tokens are prefilled.
    """

    request_id: str
    group: str
    prompt: str
    response: str = ""
    prefill_tokens: int = 0


def read_contrasts(path: Path) -> Iterator[Contrast]:
    """Yield the prompts of an XSTest-style file.

    Raises:
        UsageError: If it cannot be read, or a row has no prompt or no label. Names the row, never its text.
    """
    if not path.is_file():
        raise UsageError(f"benign_files: there is no file {path}.")
    if path.suffix == ".csv":
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{path} is not a CSV file in UTF-8 ({type(error).__name__}).") from None
    else:
        rows = list(read_jsonl(path))
    name = public_name(str(path)).rsplit(".", 1)[0]
    for number, row in enumerate(rows, 1):
        prompt, label = row.get("prompt"), row.get("label")
        # The first version of XSTest has no label: its types of unsafe prompts start with contrast_.
        if label is None and isinstance(row.get("type"), str):
            label = "unsafe" if row["type"].startswith("contrast_") else "safe"
        if not isinstance(prompt, str) or not prompt.strip() or label not in _LABELS:
            raise UsageError(f"{path}: row {number} needs a prompt and a label, safe or unsafe.")
        yield Contrast(f"{name}-{number:04d}-{text_digest(prompt)[:8]}", f"{name}, {label}", prompt)
    if not rows:
        raise UsageError(f"{path} holds no prompt.")


def held_out_prompts(settings: BenignSettings) -> list[Contrast]:
    """Return the prompts of benign_answers.jsonl, which the evaluation itself asks."""
    rows = read_benign_rows("eval")[: settings.max_benign]
    return [Contrast(row["request_id"], ALARMING if row["alarming"] else PLAIN, row["prompt"]) for row in rows]


def build_contrasts(settings: BenignSettings, items: Sequence[EvalItem]) -> list[Contrast]:
    """Return what the suite asks: the items, the files, then prefilled answers and twins.

    Raises:
        UsageError: If a file cannot be read, or is named twice.
    """
    prefilled = [
        Contrast(f"{row['request_id']}-k{k}", FALSE_CORRECTION.format(k), row["prompt"], row["response"], k)
        for row in read_benign_rows("eval")[: settings.max_benign]
        for k in settings.benign_prefill_tokens
    ]
    if len(set(settings.benign_files)) < len(settings.benign_files):
        raise UsageError("benign_files names a file twice.")
    unsafe = [Contrast(item["request_id"], UNSAFE, item["request"]) for item in items]
    twins = [
        Contrast(f"{pair['pair_id']}-{side}-k{k}", group.format(k), pair[prompt], pair[response], k)
        for pair in read_twin_pairs()[: settings.max_benign]
        for side, group, prompt, response in _SIDES
        for k in settings.benign_prefill_tokens
    ]
    return [*unsafe, *(row for name in settings.benign_files for row in read_contrasts(Path(name))), *prefilled, *twins]
