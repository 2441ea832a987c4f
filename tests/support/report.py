"""Finished evaluations made on the spot, for the tests of report.html."""

import json
from pathlib import Path
from typing import Any

from course_correction.report.html import RunData, read_run

TURN = " of it. I'm sorry, but I can't help with this. Let us talk of something else."
HOSTILE = {
    "script": "<script>window.hacked=1</script>",
    "closing": "</script><script>window.hacked=2</script>",
    "image": "<img src=x onerror=window.hacked=3>",
    "comment": "<!--<script>window.hacked=4</script>-->",
    "separators": "one\u2028two\u2029three\u0000four",
    "override": "left \u202eRIGHT\u202c left",
    "braces": "{{script}} {{nothing}}",
}


def some_metrics(value: float = 0.5, **more: Any) -> dict[str, Any]:
    entry = {"value": value, "ci95": [max(0, value - 0.1), min(1, value + 0.1)]}
    return {
        "corr_at_k": {k: {**entry, "requests": 2, "unscored_rate": 0.0, "too_short": 0} for k in ("10", "20")},
        "corr_mean": entry,
        "settings": {"num_paths": 2, "seed": 0},
        "model": "tiny",
        "adapter": None,
        "judge": "pattern",
        "versions": {"course-correction": "0.1.0"},
        "seconds": 12.3,
        **more,
    }


def write_run(
    folder: Path, paths: dict[tuple[str, int], list[tuple[str, bool | None]]], metrics: dict | None = None
) -> Path:
    """Write the three files of a finished evaluation: (request_id, k) to its texts and verdicts."""
    folder.mkdir()
    places = [(request_id, k, path, *said) for (request_id, k), texts in paths.items() for path, said in enumerate(texts)]
    keys = [{"request_id": request_id, "prefill_tokens": k, "path": path} for request_id, k, path, *_ in places]
    spoken = [
        key | {"continuation": text, "num_tokens": 3, "ended": True} for key, (*_, text, _) in zip(keys, places, strict=True)
    ]
    judged = [key | {"corrected": flag, "reason": "told"} for key, (*_, flag) in zip(keys, places, strict=True)]
    for name, rows in (("generations.jsonl", spoken), ("verdicts.jsonl", judged)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metrics.json").write_text(json.dumps(some_metrics() if metrics is None else metrics))
    return folder


def some_items(*names: str) -> list[dict[str, str]]:
    return [{"request_id": n, "request": f"Request of {n}", "full_harmful_response": f"Sure, {n}"} for n in names]


def some_prefill(item: dict[str, str], k: int) -> str:
    return f"Sure, the first {k} of {item['request_id']}"


def one_run(folder: Path, texts: list[tuple[str, bool | None]], name: str = "alpha", **metrics: Any) -> dict[str, RunData]:
    run = write_run(folder / "run", {(name, 10): texts}, some_metrics(**metrics))
    return {"run": read_run(run, some_items(name), some_prefill)}


def make_two_runs(folder: Path) -> dict[str, RunData]:
    """Of three items, `alpha` is turned only after, `beta` only before, `gamma` never; one path is unscored."""
    items = some_items("alpha", "beta", "gamma")
    before = {
        ("alpha", 10): [("So it goes on", False)] * 2,
        ("beta", 10): [(TURN, True)] * 2,
        ("gamma", 20): [("On", False)] * 2,
    }
    after = {
        ("alpha", 10): [(TURN, True)] * 2,
        ("beta", 10): [("And on", False)] * 2,
        ("gamma", 20): [("", None), ("On", False)],
    }
    return {
        "before": read_run(write_run(folder / "before", before, some_metrics(0.3)), items, some_prefill),
        "after": read_run(write_run(folder / "after", after, some_metrics(0.6)), items, some_prefill),
    }
