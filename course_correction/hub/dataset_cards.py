"""The cards of C²-Syn and C²-Eval. Every figure is computed, none is typed; no card shows a request or a response."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from course_correction.base.files import write_atomically
from course_correction.base.redaction import public_name, public_value
from course_correction.base.run_folder import library_versions
from course_correction.base.settings import Settings
from course_correction.hub.dataset_facts import GroupFacts, content_version, file_digests
from course_correction.synthesis.sources import SEED

if TYPE_CHECKING:
    from datasets import Features

    from course_correction.synthesis.export import Shards

_TEMPLATES = Path(__file__).resolve().parent / "templates"
# Settings of where and how fast: they do not change the data, and are left out of the command in the card.
_WHERE_TO = frozenset(
    {"output_dir", "export_dir", "push_to_hub", "hub_private_repo", "hub_dataset_id", "gated"}
    | {"max_parallel_calls", "call_timeout"}
)
# What the licence of a teacher demands of its outputs, by a part of its name. Llama 2 Community License, 1.b.v.
_TEACHER_TERMS = {
    "llama-2": "The Llama 2 Community License does not allow its outputs to be used to improve any other large "
    "language model than Llama 2 and its derivatives."
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


class _PushSettings(Settings, Protocol):
    @property
    def hub_dataset_id(self) -> str | None: ...
    @property
    def gated(self) -> str | None: ...


class _SynSettings(_PushSettings, Protocol):
    @property
    def source(self) -> str: ...
    @property
    def teacher(self) -> str: ...
    @property
    def teacher_model(self) -> str: ...
    @property
    def server_model(self) -> str | None: ...


class _EvalSettings(_PushSettings, Protocol):
    @property
    def items(self) -> str: ...


class Selection(TypedDict):
    """The content of selection.json: requests `kept`, and `dropped` by reason."""

    kept: int
    dropped: dict[str, int]


def _size_category(num_rows: int) -> str:
    return next((name for limit, name in _SIZES if num_rows < limit), "1M<n<10M")


def _licence(is_seed: bool, is_written: bool = True) -> str:
    # Text of PKU-SafeRLHF keeps its licence, and a file in its schema may hold such text. A model's answers to the seed
    # set's requests cannot be placed in the public domain.
    if is_seed:
        return "cc0-1.0" if is_written else "other"
    return "cc-by-nc-4.0"


def command_line(script: str, settings: Settings, left_out: Iterable[str] = ()) -> str:
    """Return the command that gives these settings: all that differ from their defaults, by public names.

    Args:
        script: Name of the script.
        settings: Instance of a settings dataclass whose fields all have defaults.
        left_out: Names of the fields to leave out.
    """
    default, words, hidden = type(settings)(), ["python", script], frozenset(left_out)
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value == getattr(default, field.name) or field.name in hidden:
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{field.name}", *(shlex.quote(str(public_value(one))) for one in values)]
    return " ".join(words)


def _render(
    template: str, data: Mapping[str, Any], values: Mapping[str, Any], infos: Mapping[str, tuple["Features", str, "Shards"]]
) -> str:
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
    citation = (_TEMPLATES / "citation.bib").read_text(encoding="utf-8").strip()
    path = str(_TEMPLATES / template)
    return str(DatasetCard.from_template(card_data, template_path=path, citation=citation, **values))


def _config(name: str, split: str, version: str, default: bool) -> dict[str, Any]:
    files = [{"split": split, "path": f"{name}/{split}-*"}]
    return {"config_name": name, "version": version, "data_files": files, **({"default": True} if default else {})}


def _teacher_terms(model: str) -> str:
    known = (terms for name, terms in _TEACHER_TERMS.items() if name in model.lower())
    return next(known, f"The licence of the teacher `{public_name(model)}` may restrict the use of its outputs as well.")


def _versions(names: Iterable[str]) -> dict[str, str]:
    """Return this project's version and those of the libraries that decide the texts."""
    versions = library_versions()
    return {name: versions[name] for name in ("course-correction", *names) if name in versions}


def _gate(gated: str | None) -> dict[str, str]:
    if not gated:
        return {}
    return {
        "extra_gated_prompt": "This dataset contains harmful text. Please state your purpose; it is meant for research on "
        "the safety of language models."
    }


def write_syn_card(
    folder: Path,
    exported: Mapping[str, "Shards"],
    selection: Selection,
    settings: _SynSettings,
    facts: GroupFacts,
) -> None:
    """Write the README of an exported C²-Syn, with the YAML that `load_dataset` reads.

    Args:
        folder: The export; its Parquet files are written.
        exported: `Shards` by config.
        selection: Which source rows were selected.
        settings: The settings of `c2_syn.py` that made the data.
        facts: Of `describe_groups`.
    """
    from datasets import Features

    from course_correction.synthesis.export import SYN_SCHEMAS

    is_seed, is_written = settings.source == SEED, settings.teacher == "written"
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
        "teacher": public_name(settings.server_model or settings.teacher_model),
        "teacher_terms": None if is_written else _teacher_terms(settings.teacher_model),
        "is_written": is_written,
        "kept": selection["kept"],
        "dropped": selection["dropped"],
        "dropped_later": selection["kept"] - exported["ranked"].num_rows,
        "settings": {name: getattr(settings, name) for name in shown},
        "command": command_line("c2_syn.py", settings, _WHERE_TO),
        "digests": file_digests(folder, [file for shards in exported.values() for file in shards.files]),
        "versions": _versions(() if is_written else ("torch", "transformers", "tokenizers")),
    }
    infos = {name: (Features.from_arrow_schema(SYN_SCHEMAS[name]), "train", exported[name]) for name in ("pairs", "ranked")}
    write_atomically(folder / "README.md", _render("dataset_card.md", card, values, infos))


def write_eval_card(folder: Path, exported: "Shards", num_requests: int, settings: _EvalSettings) -> None:
    """Write the README of an exported C²-Eval.

    Args:
        folder: The export; its Parquet file is written.
        exported: Its `Shards`.
        num_requests: Distinct requests among the items.
        settings: The settings of `c2_eval.py` that made it.
    """
    from datasets import Features

    from course_correction.synthesis.export import EVAL_SCHEMA

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
        "command": command_line("c2_eval.py", settings, _WHERE_TO),
        "digests": file_digests(folder, exported.files),
        "versions": _versions(()),
    }
    infos = {settings.items: (Features.from_arrow_schema(EVAL_SCHEMA), "test", exported)}
    write_atomically(folder / "README.md", _render("eval_card.md", card, values, infos))
