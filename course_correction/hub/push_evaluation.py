"""Put an evaluation into a model's repository: `.eval_results`, model-index, a table in the card, report, metrics and plot.

Two evaluations of one model stand side by side; one that is repeated replaces itself.
"""

import datetime
import json
import re
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.files import text_digest
from course_correction.hub.push import HubRepo, ParentMoved, find_revision, one_line, patiently, push, read_file
from course_correction.report.tables import metrics_table

RESULTS_FILE = ".eval_results/c2_eval.yaml"
TASK_ID = "c2_eval"  # Not registered: the form of eval.yaml has no room for a prefill, see integrations/README.md.
_TITLE = "C²-Eval results"
# What one evaluation is told from another by: the same again replaces, anything else is kept beside it.
_IDENTITY = (
    "items items_revision max_requests prefill_tokens prefill_mode num_paths max_new_tokens temperature top_p seed "
    "chat_template judge_model judge_threshold judge_by_probability judge_label"
)
_ROUNDS = 5


def evaluation_key(metrics: dict[str, Any]) -> str:
    """Return a short name for what was measured and how, the same whenever it is repeated."""
    settings = metrics["settings"]
    values = [json.dumps(settings.get(name)) for name in _IDENTITY.split()] + [metrics.get("items_digest", "")]
    words = re.sub(r"[^a-z0-9]+", "-", f"{settings['items']}-{metrics['judge']}".lower()).strip("-")
    return f"{words}-{text_digest(*values)[:6]}"


def _notes(metrics: dict[str, Any]) -> str:
    settings = metrics["settings"]
    return (
        f"judge {metrics['judge']}; prefill {settings['prefill_mode']}, k {settings['prefill_tokens']}; "
        f"{settings['num_paths']} paths of {settings['max_new_tokens']} tokens, T {settings['temperature']}, "
        f"top_p {settings['top_p']}; items {settings['items']}, {_num_requests(metrics)} requests"
    )


def _num_requests(metrics: dict[str, Any]) -> int:
    return max((entry["requests"] for entry in metrics["corr_at_k"].values()), default=0)


def merge_entries(old: list[Any], metrics: dict[str, Any], dataset_id: str, revision: str | None, url: str) -> list[Any]:
    """Return the entries of `.eval_results` with this evaluation's Corr_mean among them.

    Args:
        old: `EvalResultEntry`s that are there.
        metrics: metrics.json of the evaluation.
        dataset_id: The C²-Eval dataset on the Hub.
        revision: Its commit, if known.
        url: Where the report is.
    """
    from huggingface_hub import EvalResultEntry

    entry = EvalResultEntry(
        dataset_id=dataset_id,
        task_id=TASK_ID,
        value=round(metrics["corr_mean"]["value"], 4),
        dataset_revision=revision,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        source_url=url,
        source_name="C²-Eval report",
        notes=_notes(metrics),
    )
    kept = [
        other
        for other in old
        if (other.dataset_id, other.task_id, other.notes) != (entry.dataset_id, entry.task_id, entry.notes)
    ]
    return [*kept, entry]


def merge_card(content: str | None, metrics: dict[str, Any], repo_id: str, dataset_id: str | None) -> str:
    """Return a model card with this evaluation in its model-index and, as a table, in its text.

    Args:
        content: The card that is there; None without one.
        metrics: metrics.json of the evaluation.
        repo_id: The model's repository.
        dataset_id: The C²-Eval dataset on the Hub, if it is there.
    """
    from huggingface_hub import ModelCard

    card = ModelCard(content or f"---\ntags:\n- course-correction\n---\n\n# {repo_id.split('/')[1]}\n")
    new = _model_index(metrics, dataset_id)
    old = [entry for entry in card.data.eval_results or [] if not any(entry.is_equal_except_value(one) for one in new)]
    card.data.model_name = card.data.model_name or repo_id.split("/")[1]
    card.data.eval_results = [*old, *new]
    key = evaluation_key(metrics)
    begin, end = f"<!-- c2-eval {key} -->", f"<!-- /c2-eval {key} -->"
    table = metrics_table({"measured": metrics}, metrics.get("difference_to_baseline"))
    section = f"{begin}\n## Course-correction (C²-Eval)\n\n{_notes(metrics)}. Report: `c2_eval/{key}/`.\n\n{table}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    text = card.text
    card.text = pattern.sub(lambda _: section, text) if pattern.search(text) else f"{text.rstrip()}\n\n{section}\n"
    return str(card)


def _model_index(metrics: dict[str, Any], dataset_id: str | None) -> list[Any]:
    from huggingface_hub import EvalResult

    settings = metrics["settings"]
    values = {f"Corr@{k}": entry["value"] for k, entry in metrics["corr_at_k"].items()}
    values["Corr_mean"] = metrics["corr_mean"]["value"]
    common = {
        "task_type": "text-generation",
        "task_name": "Course-correction",
        "dataset_type": dataset_id or "c2-eval",
        "dataset_name": f"C²-Eval, {settings['items']}",
        # The Hub's client groups by config: what tells two evaluations apart stands here or in the metric's arguments.
        "dataset_config": settings["items"],
        "dataset_split": "test",
    }
    names = ("prefill_mode", "num_paths", "max_new_tokens", "temperature", "top_p", "max_requests")
    how = {"judge": metrics["judge"], "evaluation": evaluation_key(metrics)}
    how |= {name: settings[name] for name in names if settings[name] is not None}
    return [
        EvalResult(
            **common,
            metric_type="corr_at_k",
            metric_name=name,
            metric_value=round(value, 4),
            metric_args=how,
        )
        for name, value in values.items()
        if value is not None
    ]


def push_evaluation(repo: HubRepo, folder: Path, dataset_id: str | None = None, revision: str | None = None) -> str:
    """Push a finished evaluation to the model's repository, merged with what is there.

    Args:
        repo: Of the model; with `create_pr` a pull request is opened, or added to.
        folder: The evaluation's output folder.
        dataset_id: The C²-Eval dataset on the Hub; `.eval_results` needs one to point at, and is left out without.
        revision: Its commit, if known.

    Returns:
        The address of the repository or pull request.

    Raises:
        UsageError: If the Hub refuses, or others commit faster than this can merge.
    """
    metrics = json.loads((folder / "metrics.json").read_text())
    if metrics["corr_mean"]["value"] is None:
        raise UsageError(f"{folder} has no Corr_mean to push: no path of it was judged.")
    place = f"c2_eval/{evaluation_key(metrics)}"
    with one_line(repo.repo_id):
        return _push_merged(repo, folder, place, metrics, dataset_id, revision)


def _push_merged(
    repo: HubRepo, folder: Path, place: str, metrics: dict[str, Any], dataset_id: str | None, revision: str | None
) -> str:
    import yaml
    from huggingface_hub import HfApi, eval_result_entries_to_yaml, parse_eval_result_entries

    api = HfApi()
    for _ in range(_ROUNDS):
        revision_here = find_revision(repo, _TITLE)
        head = patiently(
            lambda at=revision_here: api.model_info(repo.repo_id, revision=at).sha, "asking for the last commit"
        )
        card = read_file(repo, "README.md", head)
        files: dict[str, Path | bytes] = {
            "README.md": merge_card(card, metrics, repo.repo_id, dataset_id).encode(),
            **{f"{place}/{name}": folder / name for name in ("metrics.json", "report.md", "corr_at_k.png")},
        }
        if dataset_id:
            there = parse_eval_result_entries(yaml.safe_load(read_file(repo, RESULTS_FILE, head) or "[]"))
            entries = merge_entries(there, metrics, dataset_id, revision, f"{repo.url}/blob/main/{place}/report.md")
            dumped = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
            files[RESULTS_FILE] = dumped.encode()
        try:
            return push(repo, files, _TITLE, parent_commit=head)
        except ParentMoved:
            continue
    raise UsageError(f"Others keep committing to {repo.repo_id}. Run the same command again.")


def carry_over(card: str, old: str | None) -> str:
    """Return a model's new card with the evaluations of its old one: their tables, and their values in the model-index."""
    from huggingface_hub import ModelCard

    if old is None:
        return card
    new, known = ModelCard(card), ModelCard(old)
    sections = re.findall(r"<!-- c2-eval [^>]*-->.*?<!-- /c2-eval [^>]*-->", old, re.DOTALL)
    if not known.data.eval_results and not sections:
        return card
    new.data.model_name, new.data.eval_results = known.data.model_name, known.data.eval_results
    new.text = "\n\n".join([new.text.rstrip(), *sections]) + "\n"
    return str(new)
