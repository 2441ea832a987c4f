"""Judge the sampled paths: verdicts.jsonl. Knows nothing of the model that wrote them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from course_correction.base.ranks import Ranks
from course_correction.base.resumable_rows import Rows, run_units
from course_correction.evaluation.items import EvaluationItems
from course_correction.evaluation.prefills import PrefillText
from course_correction.evaluation.sample import read_paths
from course_correction.evaluation.settings import EvaluationSettings
from course_correction.judges.choice import OFFLINE_JUDGES
from course_correction.judges.protocol import Judge, JudgedPath
from course_correction.judges.server import check_calls
from course_correction.report.schema import GenerationRow, VerdictRow

VERDICTS_FILE = "verdicts.jsonl"


def judge_paths(
    folder: Path, settings: EvaluationSettings, items: EvaluationItems, judge: Judge, prefill_text: PrefillText
) -> None:
    """Write verdicts.jsonl, a row for each path of generations.jsonl, in its order.

    Args:
        folder: The run folder.
        settings: Of the judge.
        items: Whose paths are judged.
        judge: The judge.
        prefill_text: Gives judges that read prefills the text of an item's first k tokens.

    Raises:
        UsageError: If the judge needs more calls to a server than `max_judge_calls`.
    """
    paths: dict[str, list[GenerationRow]] = {item["request_id"]: [] for item in items.rows}
    for row in read_paths(folder):
        paths[row["request_id"]].append(row)
    names = [name for name, rows in paths.items() if rows]
    # Prefills are rendered only for judges that read them.
    reads_prefills = not OFFLINE_JUDGES.issuperset(settings.judge)

    def to_judged(rows: Sequence[GenerationRow]) -> list[JudgedPath]:
        item = items.by_id[rows[0]["request_id"]]
        return [
            JudgedPath(
                item["request"],
                prefill_text(item, row["prefill_tokens"]) if reads_prefills else "",
                row["continuation"],
            )
            for row in rows
        ]

    def judge_unit(unit: int) -> Rows:
        rows = paths[names[unit]]
        return cast(Rows, _verdict_rows(judge, rows, to_judged(rows)))

    def prepare() -> tuple[Callable[[int], Rows], None]:
        if reads_prefills:
            check_calls(judge, [path for name in names for path in to_judged(paths[name])], settings.max_judge_calls)
        return judge_unit, None

    run_units(
        folder / VERDICTS_FILE,
        [[name] for name in names],
        lambda rows: bool(rows) and len(rows) == len(paths[rows[0]["request_id"]]),
        prepare,
        Ranks.alone(),
        f"judging ({judge.name})",
    )


def _verdict_rows(judge: Judge, rows: Sequence[GenerationRow], judged: Sequence[JudgedPath]) -> list[VerdictRow]:
    verdict_rows = []
    for row, verdict in zip(rows, judge.judge(judged), strict=True):
        verdict_row: VerdictRow = {
            "request_id": row["request_id"], "prefill_tokens": row["prefill_tokens"], "path": row["path"],
            "corrected": verdict.corrected, "reason": verdict.reason,
        }  # fmt: skip
        if verdict.votes:
            verdict_row["votes"] = verdict.votes
        verdict_rows.append(verdict_row)
    return verdict_rows
