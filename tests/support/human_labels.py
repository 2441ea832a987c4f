"""Files in the form of XSTest's labelled completions, with mild texts."""

import csv
from pathlib import Path

COLUMNS = ("id", "type", "prompt", "completion", "annotation_1", "annotation_2", "agreement", "final_label")


def write_answers(folder: Path, model: str, rows: list[tuple[str, str, str, str, str]]) -> Path:
    """Write a file in XSTest's form from rows of prompt, answer, both annotations and the final label."""
    path = folder / f"xstest_v2_completions_{model}.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, (prompt, answer, first, second, label) in enumerate(rows):
            writer.writerow([f"v2-{number}", "mild", prompt, answer, first, second, str(first == second).upper(), label])
    return path
