"""Dataset cards out of run files: every figure in a card is filled in, none is typed. Shows no request or response."""

import hashlib
from pathlib import Path
from typing import Any

from course_correction import __version__
from course_correction.run_files import write_atomically
from course_correction.sources import PKU500, SEED

TEMPLATE = Path(__file__).resolve().parent.parent / "dataset_card.md"
EVAL_TEMPLATE = Path(__file__).resolve().parent / "eval_card.md"
MODEL_TEMPLATE = Path(__file__).resolve().parent / "model_card.md"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def _size_category(num_rows: int) -> str:
    return next((name for limit, name in _SIZES if num_rows < limit), "1M<n<10M")


def _licence(is_seed: bool) -> str:
    # What holds text of PKU-SafeRLHF inherits its licence.
    return "cc0-1.0" if is_seed else "cc-by-nc-4.0"


def content_version(folder: Path) -> str:
    """Return a version that changes with the exported Parquet files.

    `datasets` keys its cache of a local folder by the folder's name, config and version, not by what is in it: without
    this, another export of the same name would be served.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.parquet")):
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return f"1.0.{int(digest.hexdigest()[:8], 16)}"


def _render(template: Path, data: dict[str, Any], values: dict[str, Any]) -> str:
    from huggingface_hub import DatasetCard, DatasetCardData

    return str(DatasetCard.from_template(DatasetCardData(**data), template_path=str(template), **values))


def write_syn_card(folder: Path, num_rows: dict[str, int], selection: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write the README of an exported C²-Syn, with the YAML that `load_dataset` reads."""
    is_seed = settings["source"] == SEED
    # A path of somebody's machine is nobody else's business; a Hub id or `seed` is.
    source = (
        settings["source"]
        if is_seed or not settings["source"].endswith((".jsonl", ".json", ".parquet"))
        else ("a local file in the schema of PKU-SafeRLHF")
    )
    teacher = "written by hand" if settings["teacher"] == "written" else Path(settings["teacher_model"]).name
    card = {
        "language": ["en"],
        "license": _licence(is_seed),
        "pretty_name": "C²-Syn",
        "size_categories": [_size_category(num_rows["pairs"])],
        "task_categories": ["text-generation"],
        "source_datasets": ["original"] if is_seed else ["PKU-Alignment/PKU-SafeRLHF"],
        "tags": ["dpo", "preference", "safety", "course-correction", "synthetic"]
        + ([] if is_seed else ["not-for-all-audiences"]),
        "configs": [
            {
                "config_name": name,
                "version": content_version(folder),
                "data_files": [{"split": "train", "path": f"{name}/train-*"}],
                **({"default": True} if name == "pairs" else {}),
            }
            for name in ("pairs", "ranked")
        ],
    }
    values = {
        "num_groups": num_rows["ranked"],
        "num_pairs": num_rows["pairs"],
        "source": source,
        "is_seed": is_seed,
        "teacher": teacher,
        "is_written": settings["teacher"] == "written",
        "kept": selection["kept"],
        "dropped": selection["dropped"],
        "dropped_later": selection["kept"] - num_rows["ranked"],
        "settings": {
            key: settings[key]
            for key in ("min_response_words", "require_how_or_what", "unique_requests", "opener_rate", "seed")
            + (() if settings["teacher"] == "written" else ("max_new_tokens", "temperature", "top_p"))
        },
        "version": __version__,
    }
    write_atomically(folder / "README.md", _render(TEMPLATE, card, values))


def write_eval_card(folder: Path, items: str, num_rows: int, num_requests: int) -> None:
    """Write the README of an exported C²-Eval."""
    card = {
        "language": ["en"],
        "license": _licence(items == SEED),
        "pretty_name": "C²-Eval",
        "size_categories": [_size_category(num_rows)],
        "task_categories": ["text-generation"],
        "tags": ["safety", "course-correction", "evaluation"] + (["not-for-all-audiences"] if items == PKU500 else []),
        "configs": [
            {
                "config_name": items,
                "version": content_version(folder),
                "data_files": [{"split": "test", "path": f"{items}/test-*"}],
                "default": True,
            }
        ],
    }
    values = {"items": items, "is_seed": items == SEED, "num_rows": num_rows, "num_requests": num_requests}
    write_atomically(folder / "README.md", _render(EVAL_TEMPLATE, card, values | {"version": __version__}))


def write_model_card(folder: Path, base_model: str, licence: str | None, dataset: str, facts: dict[str, Any]) -> None:
    """Write the README of a trained adapter or model; TRL's own card is wrong for adapters.

    Args:
        folder: Where the weights are.
        base_model: Hub id of the model that was trained.
        licence: Licence to state, if known.
        dataset: Hub id of the pairs; a local folder is not named.
        facts: What train_metrics.json holds.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        language="en",
        license=licence,
        library_name="peft" if facts["adapter"] else "transformers",
        tags=["course-correction", "dpo", "trl"],
        base_model=base_model,
        base_model_relation="adapter" if facts["adapter"] else "finetune",
        pipeline_tag="text-generation",
        datasets=[dataset] if dataset.count("/") == 1 and not Path(dataset).exists() else None,
    )
    values = {**facts, "base_model": base_model, "is_adapter": facts["adapter"]}
    write_atomically(folder / "README.md", str(ModelCard.from_template(data, str(MODEL_TEMPLATE), **values)))
