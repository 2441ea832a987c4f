"""What each term of the objective is worth, and how related methods do: train by each for the same time, then measure.

Terms are also trained on the same groups. Every run has a constant learning rate after warm-up, so that one stopped by the
clock is comparable. A run that has finished is not done again, and both comparisons share what they have in common if they
share a folder. 40 minutes to some hours, by the options.

python -m benchmarks.ablation
python -m benchmarks.ablation --seconds 300 --groups 40 --seeds 0 1 2 3 4 --max_requests 36
python -m benchmarks.ablation --compare methods --groups 0
"""

import json
import logging
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import text_digest, write_json
from course_correction.base.run_folder import library_versions, refuse_other_settings
from course_correction.base.settings import parse_settings

logger = logging.getLogger("course_correction")

OFF = {"correction_nll_weight": 0.0, "transition_weight": 0.0, "retention_weight": 0.0}
RECIPES = Path("recipes/smollm2-135m")
# Label, recipe, and the terms that are kept of it (None: all). In the order of the tables; each of TERMS adds one.
Variant = tuple[Path, tuple[str, ...] | None]
TERMS: dict[str, Variant] = {
    "pairwise (stock TRL)": (RECIPES / "methods" / "pairwise_dpo.yaml", None),
    "grouped": (RECIPES / "dpo_lora.yaml", ()),
    "+ anchored corrections": (RECIPES / "dpo_lora.yaml", ("correction_nll_weight",)),
    "+ transitions": (RECIPES / "dpo_lora.yaml", ("correction_nll_weight", "transition_weight")),
    "+ retention (the recipe)": (RECIPES / "dpo_lora.yaml", None),
}
METHODS: dict[str, Variant] = {
    "SFT on safe responses": (RECIPES / "methods" / "sft_safe.yaml", None),
    "recovery examples": (RECIPES / "methods" / "recovery.yaml", None),
    "decoupled refusal training": (RECIPES / "methods" / "derta.yaml", None),
    "pairwise DPO (the paper's)": (RECIPES / "methods" / "pairwise_dpo.yaml", None),
    "this project's recipe": (RECIPES / "dpo_lora.yaml", None),
}
VARIANTS = {"terms": TERMS, "methods": METHODS}


@dataclass
class AblationSettings:
    """How long each variant trains and how it is measured."""

    compare: Literal["terms", "methods"] = field(
        default="terms", metadata={"help": "the terms of this project's objective, or methods of others"}
    )
    evaluation: str = field(default="recipes/smollm2-135m/c2_eval.yaml", metadata={"help": "recipe of eval.py"})
    seconds: float = field(default=120.0, metadata={"help": "training time of each run at equal time; 0 leaves these out"})
    groups: int = field(default=8, metadata={"help": "groups of each run at equal groups; 0 leaves these out"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "seeds of data order and LoRA weights"})
    pairwise_batch: int = field(default=4, metadata={"help": "pairs a step of the pairwise variant"})
    max_requests: int = field(default=12, metadata={"help": "C²-Eval items measured on"})
    num_paths: int = field(default=2, metadata={"help": "paths for each item and k"})
    max_benign: int = field(default=60, metadata={"help": "benign prompts for over-refusal and KL"})
    output_dir: str = field(default="runs/ablation", metadata={"help": "where runs and table go"})

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.seconds < 0 or self.groups < 0 or not (self.seconds or self.groups):
            raise UsageError("seconds and groups must be at least 0, and one of them above.")


def run_folder(variant: Variant, budget: str, seed: int) -> str:
    """Name a run by what it trains, so that both comparisons find it."""
    recipe, terms = variant
    kept = "" if terms is None else f"-{len(terms)}-terms"
    return f"{budget}-{recipe.stem}{kept}-{seed}"


def made_with(settings: AblationSettings, variant: Variant, budget: str) -> dict[str, Any]:
    """Return what decides a run's result; the recipe by its digest."""
    others = {"compare", "seeds", "output_dir", "groups" if budget == "time" else "seconds"}
    kept = {key: value for key, value in asdict(settings).items() if key not in others}
    return kept | {"recipe": text_digest(variant[0].read_text())}


def train_variant(settings: AblationSettings, variant: str, budget: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one variant, and return steps, groups and seconds. Called in a process of its own."""
    from transformers import TrainerCallback
    from trl import DPOConfig, ModelConfig

    from course_correction.training.run import build_trainer
    from course_correction.training.settings import ObjectiveSettings, TrainingData

    recipe, terms = VARIANTS[settings.compare][variant]
    pairwise = recipe.name == "pairwise_dpo.yaml"
    changes: dict[str, Any] = {} if terms is None else {name: value for name, value in OFF.items() if name not in terms}
    steps = -(-settings.groups * 15 // settings.pairwise_batch) if pairwise else settings.groups
    changes |= {
        "lr_scheduler_type": "constant_with_warmup",
        "per_device_train_batch_size": settings.pairwise_batch if pairwise else 1,
        "max_steps": 100_000 if budget == "time" else steps,
        "seed": seed,
        "save_strategy": "no",
        "use_cpu": True,
        "output_dir": folder,
    }
    words = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    data, objective, training, model = parse_settings(
        [TrainingData, ObjectiveSettings, DPOConfig, ModelConfig], ["--config", str(recipe), *words]
    )
    trainer, _ = build_trainer(data, objective, training, model)

    class StopOnTime(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= budget == "time" and time.monotonic() - start > settings.seconds

    trainer.add_callback(StopOnTime())
    start = time.monotonic()
    trainer.train()
    seconds, steps = time.monotonic() - start, trainer.state.global_step
    trainer.save_model()
    return {"steps": steps, "groups": steps * settings.pairwise_batch / 15 if pairwise else steps, "seconds": seconds}


def measure(settings: AblationSettings, adapter: Path | None, folder: Path) -> dict[str, Any]:
    """Run eval.py, and return its metrics."""
    command = [
        sys.executable, "eval.py", "--config", settings.evaluation, "--output_dir", str(folder),
        "--max_requests", str(settings.max_requests), "--num_paths", str(settings.num_paths),
        "--max_benign", str(settings.max_benign),
    ]  # fmt: skip
    command += ["--adapter_name_or_path", str(adapter)] if adapter else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"eval.py failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads((folder / "metrics.json").read_text())


def table(rows: dict[tuple[str, str], list[dict[str, Any]]], base: dict[str, Any]) -> str:
    """Return the Markdown table: mean over the seeds, lowest and highest beside it."""

    def cell(values: list[float], digits: int, factor: float = 1.0) -> str:
        low, mean, high = (factor * value for value in (min(values), statistics.mean(values), max(values)))
        return f"{mean:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"

    lines = [
        "| training | budget | groups seen | Corr_mean, % | over-refusal, % | KL, nats/token |",
        "| --- | --- | --: | --: | --: | --: |",
        f"| none | | 0 | {100 * base['corr_mean']['value']:.1f} | {100 * base['over_refusal']['value']:.1f} | 0 |",
    ]
    for (variant, budget), runs in rows.items():
        label = f" ({statistics.mean(run['seconds'] for run in runs):.0f} s)" if budget == "time" else ""
        lines.append(
            f"| {variant} | equal {budget}{label} | {statistics.mean(run['groups'] for run in runs):.1f} "
            f"| {cell([run['corr_mean'] for run in runs], 1, 100)} | {cell([run['over_refusal'] for run in runs], 1, 100)} "
            f"| {cell([run['kl'] for run in runs], 3)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train and measure what is left of the runs, then print the table."""
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        options = json.loads(sys.argv[2])
        settings = AblationSettings(**options.pop("settings"))
        folder = Path(options["folder"])
        result = train_variant(settings, options["variant"], options["budget"], options["seed"], folder)
        write_json(folder / "trained.json", result)
        return
    (settings,) = parse_settings([AblationSettings], description=__doc__)
    root = Path(settings.output_dir)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    base = measure(settings, None, root / "base")
    budgets = (["time"] if settings.seconds else []) + (["groups"] if settings.groups else [])
    variants = VARIANTS[settings.compare]
    runs = [(budget, seed, variant) for seed in settings.seeds for budget in budgets for variant in variants]
    for number, (budget, seed, variant) in enumerate(runs, 1):
        folder, identity = root / run_folder(variants[variant], budget, seed), made_with(settings, variants[variant], budget)
        if (folder / "result.json").exists():
            refuse_other_settings(folder, json.loads((folder / "result.json").read_text())["settings"], identity)
        if not (folder / "result.json").exists():
            # What a run that was stopped left behind is of other weights.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            options = {"variant": variant, "budget": budget, "seed": seed, "folder": str(folder)}
            options["settings"] = asdict(settings)
            command = [sys.executable, "-m", "benchmarks.ablation", "--worker", json.dumps(options)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise UsageError(f"{variant}, seed {seed}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
            trained = json.loads((folder / "trained.json").read_text())
            metrics = measure(settings, folder, folder / "eval")
            values = {name: metrics[name]["value"] for name in ("corr_mean", "over_refusal")}
            write_json(
                folder / "result.json",
                trained | values | {"kl": metrics["benign_kl"]["kl"], "seed": seed} | {"settings": identity},
            )
        result = json.loads((folder / "result.json").read_text())
        rows.setdefault((variant, budget), []).append(result)
        reached = f"Corr_mean {100 * result['corr_mean']:.1f}"
        logger.info(f"{number} of {len(runs)}: {variant}, equal {budget}, seed {seed}: {reached}")
    ordered = {key: rows[key] for budget in budgets for key in ((variant, budget) for variant in variants)}
    text = table(ordered, base)
    (root / f"{settings.compare}.md").write_text(text + "\n")
    found = [{"variant": variant, "budget": budget, **run} for (variant, budget), runs in ordered.items() for run in runs]
    result = {"settings": asdict(settings), "versions": library_versions(), "base": base["corr_mean"], "runs": found}
    write_json(root / f"{settings.compare}.json", result)
    print(text)


if __name__ == "__main__":
    run_script(main)
