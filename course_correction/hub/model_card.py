"""The card of a trained model or adapter. Every figure is read from train_metrics.json, none is typed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from course_correction.base.files import write_atomically

_TEMPLATES = Path(__file__).resolve().parent / "templates"


def write_model_card(
    folder: Path, base_model: str, licence: str | None, datasets: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """Write the README of a trained adapter or model. TRL's own card is wrong for adapters.

    Args:
        folder: Where the weights are.
        base_model: Hub id of the model that was trained.
        licence: Its licence, if known.
        datasets: Hub ids of the training data; local folders are left out.
        facts: The content of train_metrics.json.
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
    citation = (_TEMPLATES / "citation.bib").read_text(encoding="utf-8").strip()
    values = {**facts, "base_model": base_model, "is_adapter": facts["adapter"], "citation": citation}
    card = ModelCard.from_template(data, str(_TEMPLATES / "model_card.md"), **values)
    write_atomically(folder / "README.md", str(card))
