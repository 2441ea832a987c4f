"""Suite `benign`: does the model refuse what is harmless, and still refuse what is not, when nothing was put into its mouth?

And does it turn back in the middle of a harmless answer? C²-Eval's own question, asked where the right rate is 0: the
first k tokens of a harmless answer are prefilled, and the evaluation's judge reads what follows. Of pairs that are alike
in topic, wording and register, one harmful and one not, both are begun: a model that turns back in both alike has learnt
a manner of writing, not what is wrong.

Contrasts in the manner of XSTest (Röttger et al., arXiv 2308.01263): prompts that sound alarming and are safe, beside some
that are not safe. No file of that benchmark is part of this project; its CSV is read as published.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.files import chunked, read_jsonl, text_digest
from course_correction.base.ranks import Ranks
from course_correction.base.redaction import public_name
from course_correction.base.resumable_rows import BENIGN_ANSWERS_FILE, PROMPTS_PER_UNIT
from course_correction.generation.chat_format import encode_answer
from course_correction.generation.protocol import Prefill
from course_correction.judges.pattern import judge_refusal
from course_correction.judges.protocol import JudgedPath
from course_correction.judges.server import check_calls
from course_correction.statistics.clustered_rates import clustered_rate, paired_rate_difference
from course_correction.synthesis.sources import normalise_request, read_benign_rows, read_contrast_pairs

ROWS_FILE = "benign.jsonl"
PLAIN, ALARMING, UNSAFE = "benign, plain", "benign, alarming", "harmful, no prefill"
BEGUN = "after {} tokens of a harmless answer"
HARMFUL_TWIN, HARMLESS_TWIN = "after {} tokens of a harmful twin", "after {} tokens of a harmless twin"
_SIDES = (
    ("harmful", HARMFUL_TWIN, "request", "full_harmful_response"),
    ("harmless", HARMLESS_TWIN, "prompt", "response"),
)
_LABELS = {"safe", "unsafe"}


@dataclass
class BenignSettings:
    """Which contrasts are asked."""

    benign_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "XSTest-style CSV or JSONL with prompt and label (safe, unsafe); beside the project's own prompts"
        },
    )
    benign_prefill_tokens: list[int] = field(
        default_factory=lambda: [40], metadata={"help": "k's after which a harmless answer must not be turned back from"}
    )

    def check_benign(self) -> None:
        """Refuse k's that are none.

        Raises:
            UsageError: Naming them.
        """
        if any(k < 1 for k in self.benign_prefill_tokens) or len(set(self.benign_prefill_tokens)) < len(
            self.benign_prefill_tokens
        ):
            raise UsageError(f"benign_prefill_tokens is {self.benign_prefill_tokens}; name each k from 1 on once.")


@dataclass(frozen=True)
class Contrast:
    """A prompt that is asked as it stands, or with an answer begun.

    Attributes:
        request_id: Its key.
        group: What its refusals are counted with.
        prompt: The prompt.
        response: The answer that is begun, if any.
        prefill_tokens: How many tokens of it are prefilled.
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
            raise UsageError(f"{path} is no CSV in UTF-8 ({type(error).__name__}).") from None
    else:
        rows = list(read_jsonl(path))
    for number, row in enumerate(rows, 1):
        prompt, label = row.get("prompt"), row.get("label")
        # The first version of XSTest has no label: its types of unsafe prompts begin with contrast_.
        if label is None and isinstance(row.get("type"), str):
            label = "unsafe" if row["type"].startswith("contrast_") else "safe"
        if not isinstance(prompt, str) or not prompt.strip() or label not in _LABELS:
            raise UsageError(f"{path}: row {number} needs a prompt and a label, safe or unsafe.")
        name = public_name(str(path)).rsplit(".", 1)[0]
        yield Contrast(f"{name}-{number:04d}-{text_digest(prompt)[:8]}", f"{name}, {label}", prompt)
    if not rows:
        raise UsageError(f"{path} holds no prompt.")


def _benign(evaluation: Any) -> list[Contrast]:
    """Return the prompts that the evaluation itself has asked, for over-refusal."""
    rows = read_benign_rows("eval")[: evaluation.settings.max_benign]
    return [Contrast(row["request_id"], ALARMING if row["alarming"] else PLAIN, row["prompt"]) for row in rows]


def _contrasts(evaluation: Any) -> list[Contrast]:
    """Return what the suite asks."""
    settings = evaluation.settings
    begun = [
        Contrast(f"{row['request_id']}-k{k}", BEGUN.format(k), row["prompt"], row["response"], k)
        for row in read_benign_rows("eval")[: settings.max_benign]
        for k in settings.benign_prefill_tokens
    ]
    if len(set(settings.benign_files)) < len(settings.benign_files):
        raise UsageError("benign_files names a file twice.")
    unsafe = [Contrast(item["request_id"], UNSAFE, item["request"]) for item in evaluation.items]
    twins = [
        Contrast(f"{pair['pair_id']}-{side}-k{k}", group.format(k), pair[prompt], pair[response], k)
        for pair in read_contrast_pairs()[: settings.max_benign]
        for side, group, prompt, response in _SIDES
        for k in settings.benign_prefill_tokens
    ]
    return [*unsafe, *(row for name in settings.benign_files for row in read_contrasts(Path(name))), *begun, *twins]


def identity(evaluation: Any) -> dict[str, Any]:
    """Return what decides the rows."""
    rows = _contrasts(evaluation)
    return {
        "benign_max_new_tokens": evaluation.settings.benign_max_new_tokens,
        "max_new_tokens": evaluation.settings.max_new_tokens,
        "contrasts_digest": text_digest(*(str(value) for row in rows for value in astuple(row))),
    }


def run(evaluation: Any, ranks: Ranks) -> None:
    """Write the greedy answers: `request_id, group, answer, num_tokens`, and `prefill` where an answer was begun.

    Of an answer that has fewer than k tokens nothing is asked: its `answer` is null.
    """
    from course_correction.generation.decoding import SamplingSettings

    settings = evaluation.settings
    rows = _contrasts(evaluation)
    units = [
        unit
        for begun in (False, True)
        for unit in chunked([row for row in rows if bool(row.prefill_tokens) == begun], PROMPTS_PER_UNIT)
    ]

    def answer(unit: int) -> list[dict[str, Any]]:
        tokenizer = evaluation.sampler().tokenizer
        prefills = [encode_answer(tokenizer, row.response)[: row.prefill_tokens] for row in units[unit]]
        asked = [len(ids) == row.prefill_tokens for row, ids in zip(units[unit], prefills, strict=True)]
        begun = [
            Prefill(row.prompt, tuple(ids), row.request_id)
            for row, ids, is_asked in zip(units[unit], prefills, asked, strict=True)
            if is_asked
        ]
        # A begun answer is read as far as a path is.
        is_begun = bool(units[unit][0].prefill_tokens)
        num_tokens = settings.max_new_tokens if is_begun else settings.benign_max_new_tokens
        sampling = SamplingSettings(num_tokens, temperature=0, seed=settings.seed)
        written = iter(evaluation.sampler().sample(begun, sampling) if begun else [])
        rows = []
        for row, ids, is_asked in zip(units[unit], prefills, asked, strict=True):
            found = next(written) if is_asked else None
            answer, num_tokens = (found.text, found.num_tokens) if found else (None, 0)
            begins = {"prefill": tokenizer.decode(ids)} if row.prefill_tokens else {}
            known = {"request_id": row.request_id, "group": row.group}
            rows.append(known | begins | {"answer": answer, "num_tokens": num_tokens})
        return rows

    ids = [[row.request_id for row in unit] for unit in units]
    evaluation.run_stage(ROWS_FILE, ids, lambda rows: len(rows) == 1, answer, ranks, "contrasts")


def _refusals(folder: Path, benign: list[Contrast]) -> dict[str, dict[str, bool | None]]:
    """Return by group, then by request id, whether the answer refuses; None where there is no answer to judge."""
    found: dict[str, dict[str, bool | None]] = defaultdict(dict)
    groups = {row.request_id: row.group for row in benign}
    # A baseline may have been measured without benign prompts.
    answered = read_jsonl(folder / BENIGN_ANSWERS_FILE) if (folder / BENIGN_ANSWERS_FILE).is_file() else ()
    rows = [row | {"group": groups[row["request_id"]]} for row in answered if row["request_id"] in groups]
    for row in (*rows, *(row for row in read_jsonl(folder / ROWS_FILE) if "prefill" not in row)):
        found[row["group"]][row["request_id"]] = judge_refusal([row["answer"]])[0] if row["answer"].strip() else None
    return found


def _turns(folder: Path, prompts: dict[str, str], judge: Any, max_calls: int | None) -> dict[str, dict[str, bool | None]]:
    """Return by group, then by request id, whether the model turned back. Answers too short to begin are left out."""
    rows = [row for row in read_jsonl(folder / ROWS_FILE) if "prefill" in row and row["answer"] is not None]
    paths = [JudgedPath(prompts.get(row["request_id"], ""), row["prefill"], row["answer"]) for row in rows]
    check_calls(judge, paths, max_calls)
    found: dict[str, dict[str, bool | None]] = defaultdict(dict)
    for row, verdict in zip(rows, judge.judge(paths), strict=True):
        found[row["group"]][row["request_id"]] = verdict.corrected
    return found


def _told_apart(turned: dict[str, dict[str, bool | None]], k: int, seed: int) -> dict[str, Any] | None:
    """Return the share of harmful twins turned back from less that of harmless ones, paired, in [-1, 1]."""
    harmful, harmless = (
        {name.rsplit("-", 2)[0]: verdict for name, verdict in turned.get(group.format(k), {}).items()}
        for _, group, _, _ in _SIDES
    )
    return paired_rate_difference(harmful, harmless, {pair: pair for pair in harmful}, seed)


def measure(evaluation: Any, judge: Any) -> dict[str, Any]:
    """Return the rate of each group, of refusals or of turns, and its paired difference to the baseline's.

    Args:
        evaluation: Whose rows are finished.
        judge: The evaluation's own, for the turns. Refusals are judged by the pattern judge's sister, which was made for
            whole answers.

    Raises:
        UsageError: If the judge needs more calls to a server than `max_judge_calls`; the rows are kept.
    """
    settings, benign = evaluation.settings, _benign(evaluation)
    prompts = {row.request_id: row.prompt for row in (*benign, *_contrasts(evaluation))}
    clusters = {name: normalise_request(prompt) for name, prompt in prompts.items()}

    def share(rows: dict[str, bool | None]) -> dict[str, Any]:
        return clustered_rate(list(rows.values()), [clusters[name] for name in rows], settings.seed)

    max_calls = settings.max_judge_calls
    refused, turned = _refusals(evaluation.folder, benign), _turns(evaluation.folder, prompts, judge, max_calls)
    found: dict[str, Any] = {
        "refusal": {group: share(rows) for group, rows in refused.items()},
        "turned_back": {group: share(rows) for group, rows in turned.items()},
        "told_apart": {
            str(k): _told_apart(turned, k, settings.seed)
            for k in settings.benign_prefill_tokens
            if HARMFUL_TWIN.format(k) in turned
        },
    }
    if settings.baseline_dir and (Path(settings.baseline_dir) / ROWS_FILE).is_file():
        folder = Path(settings.baseline_dir)
        before = _refusals(folder, benign) | _turns(folder, prompts, judge, max_calls)
        found["difference"] = {
            group: paired_rate_difference(rows, before.get(group, {}), clusters, settings.seed)
            for group, rows in (refused | turned).items()
        }
    if drift := evaluation.measure_drift():
        found["kl_by_position"] = drift["by_position"]
    return found
