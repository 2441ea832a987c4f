"""Run an evaluation: its stages in order, and the push of the result; or the calibration of its judge."""

import logging
import time
from contextlib import ExitStack
from pathlib import Path

from course_correction.base.errors import UsageError
from course_correction.base.ranks import Ranks
from course_correction.base.run_folder import open_run
from course_correction.base.settings import identity_of
from course_correction.evaluation.baseline import check_baseline
from course_correction.evaluation.items import EvaluationItems, read_items
from course_correction.evaluation.judge import VERDICTS_FILE, judge_paths
from course_correction.evaluation.measure import measure
from course_correction.evaluation.prefills import prefill_texts
from course_correction.evaluation.report import write_reports
from course_correction.evaluation.sample import GENERATIONS_FILE, sample_paths, sampling_identity
from course_correction.evaluation.settings import EvaluationSettings
from course_correction.generation.evaluated_model import EvaluatedModel
from course_correction.hub.push import HubRepo, open_repo
from course_correction.hub.push_evaluation import push_evaluation
from course_correction.judges import choice as judge_choice
from course_correction.judges.calibration import (
    calibrate,
    calibration_table,
    quote_calibration,
    read_labelled,
    write_calibration,
)
from course_correction.judges.human_labels import (
    is_human_labelled,
    measure_on_people,
    people_table,
    read_labelled_answers,
    write_people,
)
from course_correction.report.schema import Metrics
from course_correction.suites.benign_answers import sample_benign_answers
from course_correction.suites.choice import check_suite, measure_suite, sample_suite
from course_correction.suites.protocol import SuiteInputs
from course_correction.synthesis.sources import is_hub_id

logger = logging.getLogger(__name__)


def evaluate(settings: EvaluationSettings) -> Metrics | None:
    """Run the stages of an evaluation that are not finished, and return its metrics.

    Returns:
        None in a process that is not the main one.

    Raises:
        UsageError: Also at the end, with everything saved, if more than `max_unscored` of the paths have no verdict.
    """
    # Whatever would fail at the end fails before any work.
    ranks = Ranks()
    repo = _open_repo(settings) if ranks.is_main else None
    folder, items, model = Path(settings.output_dir), read_items(settings), EvaluatedModel(settings)
    inputs = SuiteInputs(folder, settings, items.rows, model)
    judge = judge_choice.make_judge(settings) if ranks.is_main else None
    check_baseline(settings)
    if judge and settings.judge_calibration:
        quote_calibration(judge.name, None, Path(settings.judge_calibration))
    for suite in settings.suite:
        check_suite(suite, inputs)
    start = time.monotonic()
    with ExitStack() as claims:
        if ranks.is_main:
            identity = sampling_identity(settings, items, model)
            claims.enter_context(open_run(folder, "sampling", identity, GENERATIONS_FILE))
        sample_paths(folder, settings, items, model, ranks)
        if settings.max_benign:
            sample_benign_answers(folder, settings, model, ranks)
        for suite in settings.suite:
            sample_suite(suite, inputs, ranks)
        ranks.leave()
        if judge is None:
            return None
        claims.enter_context(open_run(folder, "judging", identity_of(settings, "judging"), VERDICTS_FILE))
        judge_paths(folder, settings, items, judge, prefill_texts(settings.prefill_mode, settings.seed, model))
        suites = {suite: measure_suite(suite, inputs, judge) for suite in settings.suite}
        metrics = measure(folder, settings, items, model, judge.name, time.monotonic() - start, suites)
        write_reports(folder, settings, items, model, metrics)
    _check_unscored(metrics, settings)
    if repo is not None:
        _push(repo, folder, settings, items)
    return metrics


def calibrate_judge(settings: EvaluationSettings) -> tuple[str, Path]:
    """Measure the judge on labelled rows, and write judge_calibration.json; or people_labels.json, on files of XSTest.

    Returns:
        The table of its measures, and the path of the file.

    Raises:
        UsageError: If a file cannot be read, or files of both kinds are given.
    """
    folder, files = Path(settings.output_dir), settings.labelled_file
    if by_people := [file for file in files if is_human_labelled(file)]:
        if len(by_people) < len(files):
            raise UsageError("labelled_file names files of XSTest and others. Measure on one kind per run.")
        answers = [answer for file in files for answer in read_labelled_answers(Path(file))]
        judge = judge_choice.make_judge(settings)
        labels = measure_on_people(
            answers, judge, judge_choice.make_refusal_judge(settings.refusal_judge), settings.seed, settings.max_judge_calls
        )
        return people_table(labels, judge.name), write_people(folder, labels, judge.name)
    if len(files) > 1:
        raise UsageError(f"labelled_file names {len(files)} files. Pass one JSONL file, or files of XSTest.")
    rows = read_labelled(Path(files[0]) if files else None)
    judge = judge_choice.make_judge(settings)
    measures = calibrate(judge, rows, settings.seed, settings.max_judge_calls)
    return calibration_table(measures), write_calibration(folder, measures)


def _open_repo(settings: EvaluationSettings) -> HubRepo | None:
    if not settings.push_to_hub or not settings.hub_model_id:
        return None
    return open_repo(settings.hub_model_id, "model", settings.hub_private_repo, create_pr=settings.create_pr)


def _check_unscored(metrics: Metrics, settings: EvaluationSettings) -> None:
    if metrics["unscored_rate"] <= settings.max_unscored:
        return
    reasons = ", ".join(f"{name} {count}" for name, count in metrics["unscored_reasons"].items())
    raise UsageError(
        f"{metrics['unscored_rate']:.1%} of the paths are unscored ({reasons}), more than max_unscored "
        f"{settings.max_unscored}. Everything is saved in {settings.output_dir}: remove {VERDICTS_FILE} there to judge "
        "again, or raise max_unscored."
    )


def _push(repo: HubRepo, folder: Path, settings: EvaluationSettings, items: EvaluationItems) -> None:
    dataset_id = settings.hub_dataset_id or (settings.items if is_hub_id(settings.items) else None)
    if dataset_id is None:
        logger.info("No --hub_dataset_id: .eval_results, which points at a dataset on the Hub, is left out.")
    revision = items.revision if dataset_id == settings.items else None
    logger.info(f"Pushed: {push_evaluation(repo, folder, dataset_id, revision)}")
