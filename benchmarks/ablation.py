"""The effect of each term of the objective, and of related methods: train with each for the same time, then evaluate.

Terms are also trained on the same number of groups. Every run has a constant learning rate after warm-up, so that runs that
the clock stops are comparable. Finished runs are kept, and both comparisons share their common runs if they share a folder.
It takes 40 minutes to some hours, depending on the options.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import text_digest, write_json
from course_correction.base.markdown import markdown_table
from course_correction.base.run_folder import library_versions, refuse_other_settings
from course_correction.base.settings import identity_of, parse_settings, setting

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

    compare: Literal["terms", "methods"] = setting(
        "terms", "terms of this project's objective, or methods of others", group="training", identity=(), common=True
    )
    variants: list[str] = setting(
        default_factory=list, help="rows of the table to train; all by default", group="training", identity=()
    )
    model: str | None = setting(
        None,
        "model to train instead of the recipe's; drops rows above the recipe's max_length",
        group="model",
        identity="ablation",
    )
    evaluation: str = setting("recipes/smollm2-135m/c2_eval.yaml", "recipe of eval.py", group="suites", identity="ablation")
    seconds: float = setting(
        120.0,
        "training time of each run of the comparison at equal time; 0 leaves it out",
        group="training",
        identity="ablation",
        common=True,
        at_least=0,
    )
    groups: int = setting(
        8,
        "groups of each run of the comparison at equal groups; 0 leaves it out",
        group="training",
        identity="ablation",
        common=True,
        at_least=0,
    )
    seeds: list[int] = setting(
        default_factory=lambda: [0, 1, 2], help="seeds of data order and LoRA weights", group="training", identity=()
    )
    pairwise_batch: int = setting(
        4, "pairs per step of the pairwise variant", group="training", identity="ablation", at_least=1
    )
    max_requests: int = setting(12, "number of C²-Eval items", group="data", identity="ablation", at_least=1)
    num_paths: int = setting(2, "paths per item and k", group="sampling", identity="ablation", at_least=1)
    max_benign: int = setting(
        60, "number of benign prompts for over-refusal and KL", group="suites", identity="ablation", at_least=1
    )
    output_dir: str = setting("runs/ablation", "where runs and table go", group="output", identity=())

    def __post_init__(self) -> None:
        """Refuse a comparison without runs."""
        if not self.seconds and not self.groups:
            raise UsageError("seconds and groups are both 0, so there is nothing to train. Set one of them.")
        if unknown := [name for name in self.variants if name not in VARIANTS[self.compare]]:
            raise UsageError(f"variants is {unknown}, but takes {', '.join(map(repr, VARIANTS[self.compare]))}.")

    def chosen(self) -> dict[str, Variant]:
        """Return the variants to train, by label."""
        known = VARIANTS[self.compare]
        return {name: known[name] for name in known if name in (self.variants or known)}

    def budgets(self) -> list[str]:
        """Return what is equal among the runs of each comparison."""
        return [name for name, size in (("time", self.seconds), ("groups", self.groups)) if size]


def run_folder(variant: Variant, budget: str, seed: int) -> str:
    """Name a run by what it trains, so that both comparisons find it."""
    recipe, terms = variant
    kept = "" if terms is None else f"-{len(terms)}-terms"
    return f"{budget}-{recipe.stem}{kept}-{seed}"


def made_with(settings: AblationSettings, variant: Variant, budget: str) -> dict[str, Any]:
    """Return what decides a run's result; the recipe by its digest."""
    other = "groups" if budget == "time" else "seconds"
    kept = {key: value for key, value in identity_of(settings, "ablation").items() if key != other}
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
    if settings.model:
        # The recipe's max_length was chosen for another tokenizer.
        changes |= {"model_name_or_path": settings.model, "drop_long_rows": True}
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
    command += ["--model_name_or_path", settings.model] if settings.model else []
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

    head = ["training", "budget", "groups seen", "Corr_mean, %", "over-refusal, %", "KL, nats/token"]
    untrained = [f"{100 * base[name]['value']:.1f}" for name in ("corr_mean", "over_refusal")]
    lines = [["none", "", "0", *untrained, "0"]]
    for (variant, budget), runs in rows.items():
        label = f" ({statistics.mean(run['seconds'] for run in runs):.0f} s)" if budget == "time" else ""
        rates = [cell([run[name] for run in runs], 1, 100) for name in ("corr_mean", "over_refusal")]
        groups = f"{statistics.mean(run['groups'] for run in runs):.1f}"
        lines.append([variant, f"equal {budget}{label}", groups, *rates, cell([run["kl"] for run in runs], 3)])
    return markdown_table(head, lines, ["left", "left", *["right"] * 4])


def work(options: dict[str, Any]) -> None:
    """Train one variant in this process, and write trained.json."""
    settings, folder = AblationSettings(**options["settings"]), Path(options["folder"])
    result = train_variant(settings, options["variant"], options["budget"], options["seed"], folder)
    write_json(folder / "trained.json", result)


def finish_run(settings: AblationSettings, variant: str, budget: str, seed: int) -> dict[str, Any]:
    """Return the result of one run, from its folder if it has finished there; else train and evaluate.

    Raises:
        UsageError: If the folder holds a run of other settings, or training or evaluation fails.
    """
    recipe = VARIANTS[settings.compare][variant]
    folder = Path(settings.output_dir) / run_folder(recipe, budget, seed)
    identity = made_with(settings, recipe, budget)
    if (folder / "result.json").exists():
        result = json.loads((folder / "result.json").read_text())
        refuse_other_settings(folder, result["settings"], identity)
        return result
    # The files of an interrupted run belong to other weights.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = {"variant": variant, "budget": budget, "seed": seed, "folder": str(folder), "settings": asdict(settings)}
    command = [sys.executable, "-m", "benchmarks.ablation", "--worker", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"{variant}, seed {seed}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    trained = json.loads((folder / "trained.json").read_text())
    metrics = measure(settings, folder, folder / "eval")
    rates = {name: metrics[name]["value"] for name in ("corr_mean", "over_refusal")}
    result = trained | rates | {"kl": metrics["benign_kl"]["kl"], "seed": seed, "settings": identity}
    write_json(folder / "result.json", result)
    return result


def main() -> None:
    """Train and measure the runs that have not finished, then print the table."""
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        work(json.loads(sys.argv[2]))
        return
    (settings,) = parse_settings([AblationSettings], description=__doc__)
    root, variants, budgets = Path(settings.output_dir), settings.chosen(), settings.budgets()
    base = measure(settings, None, root / "base")
    runs = [(budget, seed, variant) for seed in settings.seeds for budget in budgets for variant in variants]
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {(variant, budget): [] for budget in budgets for variant in variants}
    for number, (budget, seed, variant) in enumerate(runs, 1):
        result = finish_run(settings, variant, budget, seed)
        rows[variant, budget].append(result)
        reached = f"Corr_mean {100 * result['corr_mean']:.1f}"
        logger.info(f"{number} of {len(runs)}: {variant}, equal {budget}, seed {seed}: {reached}")
    text = table(rows, base)
    (root / f"{settings.compare}.md").write_text(text + "\n")
    results = [{"variant": variant, "budget": budget, **run} for (variant, budget), kept in rows.items() for run in kept]
    summary = {"settings": asdict(settings), "versions": library_versions(), "base": base["corr_mean"], "runs": results}
    write_json(root / f"{settings.compare}.json", summary)
    print(text)


if __name__ == "__main__":
    run_script(main)
