"""The main job on a laptop: export, measure, train, measure again, show one table (`make demo`).

Each step is a command that a user would type; it is printed before it runs. A step that has finished under the same
settings is not done again, so a demo that was stopped goes on where it was.

A CPU without bfloat16 arithmetic would take over half an hour. There the small demo is done by default: it measures on fewer
items and trains for less long, and its model tells harmful from harmless less well.
"""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import write_json
from course_correction.base.settings import parse_settings
from course_correction.report.markdown import write_report
from course_correction.report.tables import metrics_table, suites_table
from course_correction.suites.choice import SUITES

FOLDER = Path("runs/demo")
RECIPES = Path("recipes/smollm2-135m")
# What the small demo changes in the recipes, for the commands that measure and for the one that trains. Its steps cost half
# as much as the recipe's and move thrice as far; more retention and a longer warmup go with that. Measured beside others in
# recipes/README.md, with 56 steps, which take too long on a busy machine.
SMALL_EVALUATION = (
    "--max_requests", "18", "--num_paths", "2", "--requests_per_unit", "9", "--max_benign", "30", "--general_limit", "40",
    "--max_attack_prompts", "4", "--dynamics_max_requests", "6",
)  # fmt: skip
SMALL_TRAINING = (
    "--max_steps", "46", "--learning_rate", "3e-3", "--warmup_steps", "12", "--retention_weight", "8",
    "--lora_target_modules", r".*layers\.2[0-9]\..*_proj", "--transition_rows", "4", "--retention_rows", "4",
    "--retention_own_answers", "60",
)  # fmt: skip


@dataclass
class DemoSettings:
    """How much of the demo is done."""

    size: str = field(
        default="auto", metadata={"help": "full, small, or auto: small on a CPU that has no bfloat16 arithmetic"}
    )

    def is_small(self) -> bool:
        """Whether the small demo is wanted.

        Raises:
            UsageError: If `size` is none of the three.
        """
        if self.size not in ("auto", "full", "small"):
            raise UsageError(f"size is {self.size!r}, but takes auto, full or small.")
        if self.size == "auto":
            from course_correction.generation.loading import has_fast_bfloat16

            return not has_fast_bfloat16()
        return self.size == "small"


def run_command(*arguments: str) -> float:
    """Run one of the project's scripts and return the seconds it took.

    Raises:
        UsageError: If it fails; it has said why.
    """
    print(f"\n$ python {shlex.join(arguments)}", flush=True)
    start = time.monotonic()
    if subprocess.run([sys.executable, *arguments]).returncode:
        raise UsageError(f"The demo stopped at this step: python {shlex.join(arguments)}")
    return time.monotonic() - start


def plan(small: bool) -> dict[str, tuple[str, ...]]:
    """Return the demo's commands by name, in their order: a script and its options each."""
    data, before, adapter, after = (FOLDER / name for name in ("c2-syn", "before", "adapter", "after"))
    evaluate = ("eval.py", "--config", str(RECIPES / "c2_eval.yaml"), "--suite", *SUITES)
    train = ("train_dpo.py", "--config", str(RECIPES / "dpo_lora.yaml"), "--dataset_name", str(data / "export"))
    if small:
        evaluate, train = evaluate + SMALL_EVALUATION, train + SMALL_TRAINING
    return {
        "synthesize": (
            "c2_syn.py", "--config", str(RECIPES / "c2_syn.yaml"),
            "--output_dir", str(data), "--export_dir", str(data / "export"),
        ),
        "export items": ("c2_eval.py", "--export_dir", str(FOLDER / "c2-eval")),
        "evaluate": (*evaluate, "--output_dir", str(before)),
        "train": (*train, "--output_dir", str(adapter)),
        "evaluate trained": (
            *evaluate, "--adapter_name_or_path", str(adapter), "--baseline_dir", str(before), "--output_dir", str(after),
        ),
    }  # fmt: skip


def main() -> None:
    """Run the demo from the project's folder."""
    (settings,) = parse_settings([DemoSettings])
    if not RECIPES.is_dir():
        raise UsageError("Run the demo from the project's folder, by `make demo`.")
    small = settings.is_small()
    if small:
        print("The small demo, for CPUs without bfloat16 arithmetic: fewer items, and a quarter of the training.")
        print("The README's figures are those of `make demo SIZE=full`: over half an hour on 2 such cores.", flush=True)
    start, training = time.monotonic(), 0.0
    commands, adapter = plan(small), FOLDER / "adapter"
    for name, command in commands.items():
        if name != "train":
            run_command(*command)
        elif not (adapter / "train_metrics.json").exists():
            training = run_command(*command, "--resume_from_checkpoint", "last")
    metrics = {name: json.loads((FOLDER / name / "metrics.json").read_text()) for name in ("before", "after")}
    difference = metrics["after"]["difference_to_baseline"]
    write_json(FOLDER / "metrics.json", metrics)
    pairs = json.loads((adapter / "train_metrics.json").read_text())
    write_report(FOLDER, metrics, difference, f"\n## Beside C²-Eval\n\n{suites_table(metrics)}\n")
    print(f"\nSmolLM2-135M before and after training on C²-Syn ({pairs['train_runtime'] / 60:.1f} minutes of training)\n")
    print(metrics_table(metrics, difference))
    print(f"\n{suites_table(metrics)}")
    minutes = (time.monotonic() - start) / 60
    print(f"\n{minutes:.1f} minutes in all, {training / 60:.1f} of them training, with loading and saving.")
    print("\n".join(str(FOLDER / name) for name in ("after/report.html", "report.md", "metrics.json", "corr_at_k.png")))
    print("\nTo publish it, after `hf auth login`, with your name for `you` (private until you say otherwise):\n")
    model = ("--push_to_hub", "true", "--hub_model_id", "you/smollm2-135m-c2")
    for command in (
        (*commands["synthesize"], "--push_to_hub", "true", "--hub_dataset_id", "you/c2-syn"),
        (*commands["export items"], "--push_to_hub", "true", "--hub_dataset_id", "you/c2-eval"),
        (*commands["train"], *model),
        (*commands["evaluate trained"], *model, "--hub_dataset_id", "you/c2-eval"),
    ):
        print(f"python {shlex.join(command)}")


if __name__ == "__main__":
    run_script(main)
