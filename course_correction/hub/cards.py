"""Cards out of run files: every figure in a card is filled in, none is typed. Shows no request and no response."""

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from course_correction.base.files import write_atomically
from course_correction.base.redaction import public_name, public_value
from course_correction.base.run_folder import library_versions
from course_correction.synthesis.ranked_groups import KINDS
from course_correction.synthesis.sources import SEED

TEMPLATE = Path(__file__).parent / "templates" / "dataset_card.md"
# Settings that say where a result goes and how fast, not what it is.
WHERE_TO = frozenset(
    {"output_dir", "export_dir", "push_to_hub", "hub_private_repo", "hub_dataset_id", "gated"}
    | {"max_parallel_calls", "call_timeout"}
)
EVAL_TEMPLATE = Path(__file__).parent / "templates" / "eval_card.md"
MODEL_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
# What a teacher's licence says of its outputs, by what its name holds. Llama 2 Community License, 1.b.v.
_TEACHER_TERMS = {
    "llama-2": "The Llama 2 Community License does not allow its outputs to be used to improve any other large "
    "language model than Llama 2 and its derivatives."
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def _size_category(num_rows: int) -> str:
    return next((name for limit, name in _SIZES if num_rows < limit), "1M<n<10M")


def _licence(is_seed: bool, is_written: bool = True) -> str:
    # What holds text of PKU-SafeRLHF inherits its licence, and a file in its schema may. What a model wrote on the seed
    # set's requests is nobody's to put into the public domain.
    if is_seed:
        return "cc0-1.0" if is_written else "other"
    return "cc-by-nc-4.0"


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


def file_digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of each file by its path inside `folder`."""
    digests = {}
    for file in files:
        with open(file, "rb") as stream:
            digests[str(file.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def command_line(script: str, settings: Any, left_out: Iterable[str] = ()) -> str:
    """Return the command that gives these settings: all that differ from their defaults, by public names.

    Args:
        script: Name of the script.
        settings: Instance of a settings dataclass whose fields all have defaults.
        left_out: Fields that say where results go, not what they are.
    """
    default, words = type(settings)(), ["python", script]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value == getattr(default, field.name) or field.name in set(left_out):
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{field.name}", *(shlex.quote(str(public_value(one))) for one in values)]
    return " ".join(words)


def describe_groups(groups: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a card says of ranked groups: rates, mean lengths, and one row with every text but its length hidden.

    Args:
        groups: Rows in `RANKED_SCHEMA`, at least one.
    """
    count, with_opener, corrections, mid_sentence = 0, 0, 0, 0
    words: Counter[str] = Counter()
    triggers: set[str] = set()
    row: dict[str, Any] = {}
    for group in groups:
        count += 1
        with_opener += bool(group["opener"])
        triggers.update(group["triggers"])
        for kind, text, start in zip(group["kinds"], group["responses"], group["correction_starts"], strict=True):
            words[kind] += len(text.split())
            corrections += start >= 0
            mid_sentence += start >= 0 and text.startswith("...", start)
        row = row or dict(group)
    hidden = {name: _hidden(row[name]) for name in ("request", "opener")}
    hidden["responses"] = [_hidden(text) for text in row["responses"]]
    return {
        "opener_share": with_opener / count,
        "mid_sentence_share": mid_sentence / corrections,
        "distinct_triggers": len(triggers),
        "mean_words": {kind: words[kind] / count for kind in KINDS},
        "row": json.dumps(row | hidden, indent=2, ensure_ascii=False),
    }


def _hidden(text: str) -> str:
    return f"<{len(text.split())} words>"


def _render(template: Path, data: dict[str, Any], values: dict[str, Any], infos: dict[str, Any]) -> str:
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCard, DatasetCardData

    card_data = DatasetCardData(**data)
    DatasetInfosDict(
        {
            name: DatasetInfo(
                features=features,
                splits=SplitDict({split: SplitInfo(split, shards.num_bytes, shards.num_rows)}),
                download_size=sum(file.stat().st_size for file in shards.files),
                dataset_size=shards.num_bytes,
            )
            for name, (features, split, shards) in infos.items()
        }
    ).to_dataset_card_data(card_data)
    return str(DatasetCard.from_template(card_data, template_path=str(template), **values))


def _config(name: str, split: str, version: str, default: bool) -> dict[str, Any]:
    files = [{"split": split, "path": f"{name}/{split}-*"}]
    return {"config_name": name, "version": version, "data_files": files, **({"default": True} if default else {})}


def _teacher_terms(model: str) -> str:
    known = (terms for name, terms in _TEACHER_TERMS.items() if name in model.lower())
    return next(known, f"What the licence of the teacher `{public_name(model)}` says of its outputs holds as well.")


def _versions(names: Iterable[str]) -> dict[str, str]:
    """Return this project's version and those of the libraries that decide the texts."""
    versions = library_versions()
    return {name: versions[name] for name in ("course-correction", *names) if name in versions}


def _gate(gated: str | None) -> dict[str, str]:
    if not gated:
        return {}
    return {
        "extra_gated_prompt": "This dataset holds harmful text. Say what you need it for; it is meant for research on the "
        "safety of language models."
    }


def write_syn_card(
    folder: Path,
    exported: dict[str, Any],
    selection: dict[str, Any],
    settings: Any,
    facts: dict[str, Any],
) -> None:
    """Write the README of an exported C²-Syn, with the YAML that `load_dataset` reads.

    Args:
        folder: The export; its Parquet files are written.
        exported: `Shards` by config.
        selection: What selection.json holds: requests `kept`, and `dropped` by reason.
        settings: The `SynthesisSettings` it was made with.
        facts: Of `describe_groups`.
    """
    from datasets import Features

    from course_correction.synthesis.builders import SYN_SCHEMAS

    is_seed, is_written = settings.source == SEED, settings.teacher == "written"
    teacher = public_name(settings.server_model or settings.teacher_model)
    version = content_version(folder)
    card = {
        "language": ["en"],
        "license": _licence(is_seed, is_written),
        "pretty_name": "C²-Syn",
        "size_categories": [_size_category(exported["pairs"].num_rows)],
        "task_categories": ["text-generation"],
        "source_datasets": ["original"] if is_seed else ["PKU-Alignment/PKU-SafeRLHF"],
        "tags": ["dpo", "preference", "safety", "course-correction", "synthetic"]
        + ([] if is_seed else ["not-for-all-audiences"]),
        "configs": [_config(name, "train", version, name == "pairs") for name in ("pairs", "ranked")],
        **_gate(settings.gated),
    }
    shown = ["min_response_words", "require_how_or_what", "unique_requests", "opener_rate", "mid_sentence_rate", "seed"]
    shown += [] if is_written else ["max_new_tokens", "temperature", "top_p"]
    values = {
        **facts,
        "repo_id": settings.hub_dataset_id or "c2-syn",
        "num_groups": exported["ranked"].num_rows,
        "num_pairs": exported["pairs"].num_rows,
        "source": settings.source if is_seed else f"{public_name(settings.source)}, in the schema of PKU-SafeRLHF",
        "is_seed": is_seed,
        "teacher": teacher,
        "teacher_terms": None if is_written else _teacher_terms(settings.teacher_model),
        "is_written": is_written,
        "kept": selection["kept"],
        "dropped": selection["dropped"],
        "dropped_later": selection["kept"] - exported["ranked"].num_rows,
        "settings": {key: getattr(settings, key) for key in shown},
        "command": command_line("c2_syn.py", settings, WHERE_TO),
        "digests": file_digests(folder, [file for shards in exported.values() for file in shards.files]),
        "versions": _versions(() if is_written else ("torch", "transformers", "tokenizers")),
    }
    infos = {name: (Features.from_arrow_schema(SYN_SCHEMAS[name]), "train", exported[name]) for name in ("pairs", "ranked")}
    write_atomically(folder / "README.md", _render(TEMPLATE, card, values, infos))


def write_eval_card(folder: Path, exported: Any, num_requests: int, settings: Any) -> None:
    """Write the README of an exported C²-Eval.

    Args:
        folder: The export; its Parquet file is written.
        exported: Its `Shards`.
        num_requests: Distinct requests among the items.
        settings: The `ItemSettings` it was made with.
    """
    from datasets import Features

    from course_correction.synthesis.builders import EVAL_SCHEMA

    is_seed = settings.items == SEED
    card = {
        "language": ["en"],
        "license": _licence(is_seed),
        "pretty_name": "C²-Eval",
        "size_categories": [_size_category(exported.num_rows)],
        "task_categories": ["text-generation"],
        "source_datasets": ["original"] if is_seed else ["PKU-Alignment/PKU-SafeRLHF"],
        "tags": ["safety", "course-correction", "evaluation"] + ([] if is_seed else ["not-for-all-audiences"]),
        "configs": [_config(settings.items, "test", content_version(folder), True)],
        **_gate(settings.gated),
    }
    values = {
        "repo_id": settings.hub_dataset_id or "c2-eval",
        "items": settings.items,
        "is_seed": is_seed,
        "num_rows": exported.num_rows,
        "num_requests": num_requests,
        "command": command_line("c2_eval.py", settings, WHERE_TO),
        "digests": file_digests(folder, exported.files),
        "versions": _versions(()),
    }
    infos = {settings.items: (Features.from_arrow_schema(EVAL_SCHEMA), "test", exported)}
    write_atomically(folder / "README.md", _render(EVAL_TEMPLATE, card, values, infos))


def write_model_card(
    folder: Path, base_model: str, licence: str | None, datasets: Sequence[str], facts: dict[str, Any]
) -> None:
    """Write the README of a trained adapter or model; TRL's own card is wrong for adapters.

    Args:
        folder: Where the weights are.
        base_model: Hub id of the model that was trained.
        licence: Licence to state, if known.
        datasets: Hub ids of what was trained on; local folders are not named.
        facts: What train_metrics.json holds.
    """
    from huggingface_hub import ModelCard, ModelCardData

    public = [name.split("@")[0] for name in datasets if name.count("/") == 1 and not Path(name).exists()]
    data = ModelCardData(
        language="en",
        license=licence,
        library_name="peft" if facts["adapter"] else "transformers",
        tags=["course-correction", "dpo", "trl"],
        base_model=base_model,
        base_model_relation="adapter" if facts["adapter"] else "finetune",
        pipeline_tag="text-generation",
        datasets=list(dict.fromkeys(public)) or None,
    )
    values = {**facts, "base_model": base_model, "is_adapter": facts["adapter"]}
    write_atomically(folder / "README.md", str(ModelCard.from_template(data, str(MODEL_TEMPLATE), **values)))
