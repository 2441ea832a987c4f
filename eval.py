"""C²-Eval: sample paths after k tokens of harmful responses, judge them, report Corr@k and Corr_mean.

python eval.py --config recipes/smollm2-135m/c2_eval.yaml --output_dir runs/base
python eval.py --config recipes/smollm2-135m/c2_eval.yaml --adapter_name_or_path runs/dpo --output_dir runs/dpo-eval
python eval.py --calibrate true --judge pattern --output_dir runs/judge
"""

from course_correction.base.console import run_script
from course_correction.base.settings import parse_settings
from course_correction.evaluation.settings import EvaluationSettings


def main() -> None:
    """Evaluate the model, or calibrate the judge, and print the table."""
    (settings,) = parse_settings([EvaluationSettings], description=__doc__)
    from course_correction.evaluation.run import calibrate_judge, evaluate
    from course_correction.report.tables import metrics_table, suites_table

    if settings.calibrate:
        table, path = calibrate_judge(settings)
        print(f"{table}\n\n{path}")
        return
    metrics = evaluate(settings)
    if metrics is not None:
        print(metrics_table({"measured": metrics}, metrics.get("difference_to_baseline")))
        if table := suites_table({"measured": metrics}):
            print(f"\n{table}")
        print(f"\n{settings.output_dir}/report.html, report.md, metrics.json, corr_at_k.png")


if __name__ == "__main__":
    run_script(main)
