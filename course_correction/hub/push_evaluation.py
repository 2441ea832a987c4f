"""Push an evaluation to a model's repository: `.eval_results`, model-index, a table in the card, report, metrics and plot.

Several evaluations of one model are kept side by side. A repeated evaluation replaces its earlier result.
"""

import datetime
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from course_correction.base.errors import UsageError
from course_correction.base.files import text_digest
from course_correction.hub.client import ParentMoved, one_line, with_retries
from course_correction.hub.push import HubRepo, find_revision, push, read_file
from course_correction.report.judge_quotes import judge_sentences
from course_correction.report.run_data import read_run
from course_correction.report.schema import Metrics
from course_correction.report.tables import metrics_table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData

RESULTS_FILE = ".eval_results/c2_eval.yaml"
TASK_ID = "c2_eval"  # Not registered: the form of eval.yaml has no room for a prefill, see integrations/README.md.
_TITLE = "C²-Eval results"
# Settings that tell evaluations of one model apart: an evaluation that agrees in all of them replaces the earlier one.
# Those that decide the model itself are not among them, as it is the repository's.
IDENTITY = (
    *("items", "items_revision", "max_requests", "prefill_tokens", "prefill_mode", "num_paths", "max_new_tokens"),
    *("temperature", "top_p", "seed", "chat_template"),
    *("judge_model", "judge_threshold", "judge_by_probability", "judge_critique_tokens", "judge_label"),
    "refusal_judge",
)
_ROUNDS = 5  # Merges with what others push in the meantime.


def evaluation_key(metrics: Metrics) -> str:
    """Return a short name of the evaluation. A repetition has the same name."""
    settings = metrics["settings"]
    values = [json.dumps(settings.get(name)) for name in IDENTITY] + [metrics.get("items_digest", "")]
    words = re.sub(r"[^a-z0-9]+", "-", f"{settings['items']}-{metrics['judge']}".lower()).strip("-")
    return f"{words}-{text_digest(*values)[:6]}"


def _notes(metrics: Metrics) -> str:
    settings = metrics["settings"]
    return (
        f"judge {metrics['judge']}; prefill {settings['prefill_mode']}, k {settings['prefill_tokens']}; "
        f"{settings['num_paths']} paths of {settings['max_new_tokens']} tokens, T {settings['temperature']}, "
        f"top_p {settings['top_p']}; items {settings['items']}, {_num_requests(metrics)} requests"
    )


def _num_requests(metrics: Metrics) -> int:
    return max((entry["requests"] for entry in metrics["corr_at_k"].values()), default=0)


def merge_entries(
    old: list["EvalResultEntry"], metrics: Metrics, dataset_id: str, revision: str | None, url: str
) -> list["EvalResultEntry"]:
    """Return the entries of `.eval_results` with this evaluation's Corr_mean added or replaced.

    Args:
        old: The entries in the repository.
        metrics: metrics.json of the evaluation.
        dataset_id: The C²-Eval dataset on the Hub.
        revision: Its commit, if known.
        url: The address of the report.
    """
    from huggingface_hub import EvalResultEntry

    corr_mean = metrics["corr_mean"]["value"]
    assert corr_mean is not None, "push_evaluation refuses an evaluation without Corr_mean"
    entry = EvalResultEntry(
        dataset_id=dataset_id,
        task_id=TASK_ID,
        value=round(corr_mean, 4),
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


def merge_card(content: str | None, metrics: Metrics, repo_id: str, dataset_id: str | None) -> str:
    """Return a model card with this evaluation in its model-index and, as a table, in its text.

    Args:
        content: The card in the repository; None if there is none.
        metrics: metrics.json of the evaluation.
        repo_id: The model's repository.
        dataset_id: The C²-Eval dataset on the Hub, if any.
    """
    from huggingface_hub import ModelCard

    card = ModelCard(content or f"---\ntags:\n- course-correction\n---\n\n# {repo_id.split('/')[1]}\n")
    data = cast("ModelCardData", card.data)
    new = _model_index(metrics, dataset_id)
    old = [entry for entry in data.eval_results or [] if not any(entry.is_equal_except_value(one) for one in new)]
    data.model_name = data.model_name or repo_id.split("/")[1]
    data.eval_results = [*old, *new]
    key = evaluation_key(metrics)
    begin, end = f"<!-- c2-eval {key} -->", f"<!-- /c2-eval {key} -->"
    table = metrics_table({"measured": metrics}, metrics.get("difference_to_baseline"))
    notes = f"{_notes(metrics)}. Report: `c2_eval/{key}/`. {judge_sentences(metrics)}"
    section = f"{begin}\n## Course-correction (C²-Eval)\n\n{notes}\n\n{table}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    text = card.text
    card.text = pattern.sub(lambda _: section, text) if pattern.search(text) else f"{text.rstrip()}\n\n{section}\n"
    return str(card)


def _model_index(metrics: Metrics, dataset_id: str | None) -> list["EvalResult"]:
    from huggingface_hub import EvalResult

    settings = metrics["settings"]
    values = {f"Corr@{k}": entry["value"] for k, entry in metrics["corr_at_k"].items()}
    values["Corr_mean"] = metrics["corr_mean"]["value"]
    names = ("prefill_mode", "num_paths", "max_new_tokens", "temperature", "top_p", "max_requests")
    arguments: dict[str, object] = {"judge": metrics["judge"], "evaluation": evaluation_key(metrics)}
    arguments |= {name: settings[name] for name in names if settings[name] is not None}
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Course-correction",
            dataset_type=dataset_id or "c2-eval",
            dataset_name=f"C²-Eval, {settings['items']}",
            # The Hub's client groups results by config and metric arguments, so these tell two evaluations apart.
            dataset_config=str(settings["items"]),
            dataset_split="test",
            metric_type="corr_at_k",
            metric_name=name,
            metric_value=round(value, 4),
            metric_args=arguments,
        )
        for name, value in values.items()
        if value is not None
    ]


def push_evaluation(repo: HubRepo, folder: Path, dataset_id: str | None = None, revision: str | None = None) -> str:
    """Push a finished evaluation to the model's repository, merged with its content.

    Args:
        repo: Of the model; with `create_pr` a pull request is opened or extended.
        folder: The evaluation's output folder.
        dataset_id: The C²-Eval dataset on the Hub. Without one, `.eval_results` is left out, as it refers to a dataset.
        revision: Its commit, if known.

    Returns:
        The address of the repository or pull request.

    Raises:
        UsageError: If the Hub refuses, or others commit faster than this can merge.
    """
    metrics = read_run(folder)
    if metrics["corr_mean"]["value"] is None:
        raise UsageError(f"{folder} has no Corr_mean to push: none of its paths was judged.")
    place = f"c2_eval/{evaluation_key(metrics)}"
    with one_line(repo.repo_id):
        return _push_merged(repo, folder, place, metrics, dataset_id, revision)


def _push_merged(
    repo: HubRepo, folder: Path, place: str, metrics: Metrics, dataset_id: str | None, revision: str | None
) -> str:
    import yaml
    from huggingface_hub import HfApi, eval_result_entries_to_yaml, parse_eval_result_entries

    api = HfApi()
    for _ in range(_ROUNDS):
        head = with_retries(
            lambda: api.model_info(repo.repo_id, revision=find_revision(repo, _TITLE)).sha, "asking for the last commit"
        )
        card = read_file(repo, "README.md", head)
        files: dict[str, Path | bytes] = {
            "README.md": merge_card(card, metrics, repo.repo_id, dataset_id).encode(),
            **{f"{place}/{name}": folder / name for name in ("metrics.json", "report.md", "corr_at_k.png")},
        }
        if dataset_id:
            old = parse_eval_result_entries(yaml.safe_load(read_file(repo, RESULTS_FILE, head) or "[]"))
            entries = merge_entries(old, metrics, dataset_id, revision, f"{repo.url}/blob/main/{place}/report.md")
            dumped = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
            files[RESULTS_FILE] = dumped.encode()
        try:
            return push(repo, files, _TITLE, parent_commit=head)
        except ParentMoved:
            continue
    raise UsageError(f"Others keep committing to {repo.repo_id}. Run the same command again.")


def carry_over(card: str, old: str | None) -> str:
    """Return a model's new card with the evaluations in its old one: their tables, and their values in the model-index."""
    from huggingface_hub import ModelCard

    if old is None:
        return card
    new = ModelCard(card)
    data, old_data = (cast("ModelCardData", one.data) for one in (new, ModelCard(old)))
    sections = re.findall(r"<!-- c2-eval [^>]*-->.*?<!-- /c2-eval [^>]*-->", old, re.DOTALL)
    if not old_data.eval_results and not sections:
        return card
    data.model_name, data.eval_results = old_data.model_name, old_data.eval_results
    new.text = "\n\n".join([new.text.rstrip(), *sections]) + "\n"
    return str(new)
