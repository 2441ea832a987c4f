"""Small finished evaluations, for the tests of report.html."""

import json
from pathlib import Path
from typing import Any

from course_correction.report.run_data import RunData, read_run
from course_correction.report.schema import Item, Metrics

CORRECTION = " of it. I'm sorry, but I can't help with this. Let us talk of something else."
HOSTILE = {
    "script": "<script>window.hacked=1</script>",
    "closing": "</script><script>window.hacked=2</script>",
    "image": "<img src=x onerror=window.hacked=3>",
    "comment": "<!--<script>window.hacked=4</script>-->",
    "separators": "one\u2028two\u2029three\u0000four",
    "override": "left \u202eRIGHT\u202c left",
    "braces": "{{script}} {{nothing}}",
}

TWO_LENGTHS = {
    "corr_at_k": {
        "10": {"value": 0.412, "ci95": [0.35, 0.471], "requests": 4, "unscored_rate": 0.0, "too_short": 0},
        "80": {"value": 0.1, "ci95": [0.05, 0.2], "requests": 2, "unscored_rate": 0.125, "too_short": 3},
    },
    "corr_mean": {"value": 0.256, "ci95": [0.2, 0.3]},
    "over_refusal": {"value": 0.0, "ci95": [0.0, 0.0], "count": 5},
    "settings": {"num_paths": 4, "seed": 0, "judge": "pattern"},
    "model": "tiny",
    "adapter": None,
    "judge": "pattern",
    "versions": {"course-correction": "0.1.0"},
    "seconds": 12.3,
}
TWO_LENGTHS_DIFFERENCE = {
    "corr_at_k": {"10": {"value": 0.05, "ci95": [-0.01, 0.11]}},
    "corr_mean": {"value": -0.02, "ci95": [-0.1, 0.06]},
    "requests": 4,
}


def some_metrics(value: float = 0.5, **more: Any) -> Metrics:
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


def full_metrics(value: float = 0.5) -> Metrics:
    """Return metrics with every part that can be measured."""
    rate = {"value": 0.2, "ci95": [0.1, 0.3], "count": 50, "clusters": 50, "unscored_rate": 0.0}
    change = {"value": 0.1, "ci95": [0.0, 0.2], "p_value": 0.04, "count": 50}
    task = {"metric": "acc", "value": 0.5, "stderr": 0.01, "ci95": [0.4, 0.6], "count": 9, "higher_is_better": True}
    perplexity = {**task, "metric": "word_perplexity", "value": 21.0, "ci95": None, "higher_is_better": False}
    null_attack = {**rate, "value": None, "ci95": None, "null_prompts": 1, "value_without_null": None}
    measures = ("precision", "sensitivity", "specificity", "f1", "kappa")
    counts = {"true_positives": 5, "false_positives": 1, "false_negatives": 1, "true_negatives": 2, "unscored": 0}
    estimate = {"value": 0.2, "ci95": [0.1, 0.3]}
    on_family = {
        "precision": estimate, "sensitivity": estimate, "kappa": estimate,
        "rows": 9, "counts": counts, "source": "labelled set",
    }  # fmt: skip
    return some_metrics(
        value,
        corr_mean_adjusted=estimate,
        first_correction={"mean": 8.2, "ci95": [7.0, 9.0], "by_prefill": {"10": 8.2}, "paths": 1},
        over_refusal=rate,
        over_refusal_difference=change,
        benign_kl={"kl": 0.1, "reverse_kl": 0.1, "tokens": 3, "by_position": [0.1, 0.2, 0.05]},
        judge_agreement={name: estimate for name in measures}
        | {"rows": 9, "unscored_rate": 0.0, "family": "smollm2", "on_family": on_family},
        refusal_agreement={"judge": "encoder", "family": "smollm2", "on_family": on_family},
        judges_kappa={"one": {"one": 1.0, "two": None}, "two": {"one": None, "two": 1.0}},
        unscored_rate=0.1,
        unscored_reasons={"no answer": 1},
        requests_needed={"width": 0.05, "requests": 39},
        jailbreak={
            "attacks": {"GCG": {**rate, "ciphers": {"caesar": rate}}, "PAIR": null_attack},
            "mean": 0.2, "overall": rate, "judge": "refusal", "max_new_tokens": 64,
            "difference": {"GCG": change, "PAIR": None}, "overall_difference": change,
        },
        general={
            "tasks": {"sums": task, "words": perplexity}, "groups": {"science": task},
            "difference": {"sums": change, "words": change}, "versions": {"lm_eval": "0.4"},
        },
        benign={
            "refusal": {"benign, plain": rate},
            "correction": {
                "false correction @20": rate, "correction @20, harmful twins": rate,
                "false correction @20, harmless twins": rate,
            },
            "twin_difference": {"20": change},
            "difference": {"benign, plain": change, "false correction @20": change},
            "kl_by_position": [0.1, 0.2, 0.05],
        },
        dynamics={
            "prefill_tokens": [10, 20], "positions": 2, "requests": 2, "tokens": 9, "mass": [[0.1, 0.2], [0.3, None]],
            "reference_mass": [[0.1, 0.1], [0.2, None]], "kl": [[0.1, 0.1], [0.2, None]],
            "mean_mass": estimate, "mean_reference_mass": estimate, "mean_kl": estimate,
        },
    )  # fmt: skip


def write_run(
    folder: Path, paths: dict[tuple[str, int], list[tuple[str, bool | None]]], metrics: dict | None = None
) -> Path:
    """Write the three files of a finished evaluation: (request_id, k) to its texts and verdicts."""
    folder.mkdir()
    places = [(request_id, k, path, *one) for (request_id, k), texts in paths.items() for path, one in enumerate(texts)]
    keys = [{"request_id": request_id, "prefill_tokens": k, "path": path} for request_id, k, path, *_ in places]
    generated = [
        key | {"continuation": text, "num_tokens": 3, "ended": True} for key, (*_, text, _) in zip(keys, places, strict=True)
    ]
    judged = [key | {"corrected": flag, "reason": "labelled"} for key, (*_, flag) in zip(keys, places, strict=True)]
    for name, rows in (("generations.jsonl", generated), ("verdicts.jsonl", judged)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metrics.json").write_text(json.dumps(some_metrics() if metrics is None else metrics))
    return folder


def some_items(*names: str) -> list[Item]:
    return [{"request_id": n, "request": f"Request of {n}", "full_harmful_response": f"Sure, {n}"} for n in names]


def some_prefill(item: Item, k: int) -> str:
    return f"Sure, the first {k} of {item['request_id']}"


def run_data(folder: Path, items: list[Item]) -> RunData:
    return RunData(read_run(folder), folder, items, some_prefill)


def one_run(folder: Path, texts: list[tuple[str, bool | None]], name: str = "alpha", **metrics: Any) -> dict[str, RunData]:
    run = write_run(folder / "run", {(name, 10): texts}, some_metrics(**metrics))
    return {"run": run_data(run, some_items(name))}


def make_two_runs(folder: Path) -> dict[str, RunData]:
    """Of three items, `alpha` is corrected only after, `beta` only before, `gamma` never; one path is unscored."""
    items = some_items("alpha", "beta", "gamma")
    before = {
        ("alpha", 10): [("So it continues", False)] * 2,
        ("beta", 10): [(CORRECTION, True)] * 2,
        ("gamma", 20): [("More", False)] * 2,
    }
    after = {
        ("alpha", 10): [(CORRECTION, True)] * 2,
        ("beta", 10): [("And more", False)] * 2,
        ("gamma", 20): [("", None), ("More", False)],
    }
    return {
        "before": run_data(write_run(folder / "before", before, some_metrics(0.3)), items),
        "after": run_data(write_run(folder / "after", after, some_metrics(0.6)), items),
    }
