"""Markdown tables. Knows nothing of what a cell means."""

from collections.abc import Iterable, Sequence
from typing import Literal

Alignment = Literal["left", "right"]
_RULES = {"left": "---", "right": "--:"}


def markdown_table(
    head: Sequence[object], rows: Iterable[Sequence[object]], align: Sequence[Alignment] | None = None
) -> str:
    """Return a Markdown table without a trailing newline; a bar inside a cell is escaped.

    Args:
        head: Names of the columns.
        rows: Cells of each row, as many as there are columns.
        align: Alignment of each column; without it the first is aligned left and the others right.
    """
    rules = [_RULES[side] for side in align] if align else ["---", *["--:"] * (len(head) - 1)]
    lines = [head, rules, *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)
