"""The whole project in one command: export, evaluate, train, evaluate again, show one table (`make demo`).

Each step is a command that a user would type, and is printed before it runs. A finished step is not repeated under the same
settings, so an interrupted demo continues where it stopped.

`make demo` runs the full demo on CPUs with native bfloat16 (AVX512-BF16, AMX) and a smaller one elsewhere, because the full
demo takes over half an hour there. The small demo evaluates fewer items and trains for fewer steps, and its model
distinguishes harmful from harmless answers less well.
"""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import write_json
from course_correction.base.settings import parse_settings, setting
from course_correction.report.markdown import write_report
from course_correction.report.run_data import read_run
from course_correction.report.tables import metrics_table, suites_table
from course_correction.suites.choice import SUITES

Command = tuple[str, ...]  # A script and its options.

FOLDER = Path("runs/demo")
RECIPES = Path("recipes/smollm2-135m")
# What the small demo changes in the recipes, for evaluation and for training. Its steps cost half as much as the recipe's
# and move three times as far, so it needs more retention and a longer warmup. docs/experiments.md compares other settings.
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
    """How much the demo does."""

    size: Literal["auto", "full", "small"] = setting(
        "auto",
        "full, small, or auto: full on a GPU or a CPU with native bfloat16",
        group="training",
        identity=(),
        common=True,
    )

    def is_small(self) -> bool:
        """Return whether to run the small demo."""
        if self.size == "auto":
            from course_correction.generation.loading import has_fast_bfloat16

            return not has_fast_bfloat16()
        return self.size == "small"


def run_command(*arguments: str) -> float:
    """Run one of the project's scripts and return the seconds that it took.

    Raises:
        UsageError: If it fails. The script has printed the reason.
    """
    print(f"\n$ python {shlex.join(arguments)}", flush=True)
    start = time.monotonic()
    if subprocess.run([sys.executable, *arguments]).returncode:
        raise UsageError(f"The demo stopped at this step: python {shlex.join(arguments)}")
    return time.monotonic() - start


def plan(small: bool) -> dict[str, Command]:
    """Return the demo's commands by name, in their order."""
    data, before, adapter, after = (FOLDER / name for name in ("c2-syn", "before", "adapter", "after"))
    evaluate: Command = ("eval.py", "--config", str(RECIPES / "c2_eval.yaml"), "--suite", *SUITES)
    train: Command = ("train_dpo.py", "--config", str(RECIPES / "dpo_lora.yaml"), "--dataset_name", str(data / "export"))
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


def push_commands(commands: dict[str, Command]) -> list[Command]:
    """Return the demo's commands with the options that push their results."""
    model = ("--push_to_hub", "true", "--hub_model_id", "you/smollm2-135m-c2")
    return [
        (*commands["synthesize"], "--push_to_hub", "true", "--hub_dataset_id", "you/c2-syn"),
        (*commands["export items"], "--push_to_hub", "true", "--hub_dataset_id", "you/c2-eval"),
        (*commands["train"], *model),
        (*commands["evaluate trained"], *model, "--hub_dataset_id", "you/c2-eval"),
    ]


def run_demo(commands: dict[str, Command]) -> float:
    """Run the commands in their order, and return the seconds spent on training; 0 if it was finished before."""
    training = 0.0
    for name, command in commands.items():
        if name != "train":
            run_command(*command)
        elif not (FOLDER / "adapter" / "train_metrics.json").exists():
            training = run_command(*command, "--resume_from_checkpoint", "last")
    return training


def show_results() -> None:
    """Write the report on both evaluations, and print their tables."""
    metrics = {name: read_run(FOLDER / name) for name in ("before", "after")}
    difference = metrics["after"]["difference_to_baseline"]
    suites = suites_table(metrics)
    write_json(FOLDER / "metrics.json", metrics)
    write_report(FOLDER, metrics, difference, f"\n## Other suites\n\n{suites}\n")
    minutes = json.loads((FOLDER / "adapter" / "train_metrics.json").read_text())["train_runtime"] / 60
    print(f"\nSmolLM2-135M before and after training on C²-Syn ({minutes:.1f} minutes of training)\n")
    print(f"{metrics_table(metrics, difference)}\n\n{suites}")


def main() -> None:
    """Run the demo from the project's folder."""
    (settings,) = parse_settings([DemoSettings], description=__doc__)
    if not RECIPES.is_dir():
        raise UsageError(f"{RECIPES} does not exist here. Run the demo from the project's folder, with `make demo`.")
    small = settings.is_small()
    if small:
        print("Running the small demo, as this CPU has no native bfloat16 or `--size small` was given.")
        print(
            "The README shows the figures of `make demo SIZE=full`, which takes over half an hour on 2 such cores.",
            flush=True,
        )
    start = time.monotonic()
    commands = plan(small)
    training = run_demo(commands)
    show_results()
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes in total, {training / 60:.1f} of them for training.")
    print("\n".join(str(FOLDER / name) for name in ("after/report.html", "report.md", "metrics.json", "corr_at_k.png")))
    print("\nTo push the results, run `hf auth login`, then these commands with your name for `you` (private by default):\n")
    for command in push_commands(commands):
        print(f"python {shlex.join(command)}")


if __name__ == "__main__":
    run_script(main)
