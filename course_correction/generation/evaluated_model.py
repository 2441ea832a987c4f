"""The model under evaluation: its identity, and its tokenizer, sampler and reference, loaded on first use.

Knows nothing of items, judges or metrics.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from course_correction.base.ranks import Ranks
from course_correction.base.resumable_rows import Rows, run_units
from course_correction.base.settings import identity_of, setting
from course_correction.generation.chat_format import read_chat_template
from course_correction.generation.choice import SamplerSettings, load_sampler
from course_correction.generation.loading import load_reference_model, load_tokenizer, pick_dtype, weights_identity
from course_correction.generation.protocol import Model, Sampler, Tokenizer
from course_correction.generation.samplers import ModelSampler

# The settings that may name a local folder with weights.
_WEIGHTS = ("model_name_or_path", "adapter_name_or_path", "reference_model")


@dataclass
class EvaluatedModelSettings(SamplerSettings):
    """Which model is evaluated, and how it is loaded."""

    model_name_or_path: str = setting(
        "smollm2-135m",
        "chat model: Hub id, folder, or an offline model: smollm2-135m, qwen2.5-coder-0.5b, qwen2.5-coder-1.5b",
        group="model",
        identity="model",
        common=True,
    )
    model_revision: str | None = setting(None, "revision of the model on the Hub", group="model", identity="model")
    adapter_name_or_path: str | None = setting(
        None, "LoRA adapter to load on the model", group="model", identity="model", common=True
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", "data type of the weights", group="model", identity="model"
    )
    attn_implementation: str = setting("sdpa", "attention, as for from_pretrained", group="model", identity="model")
    load_in_4bit: bool = setting(False, "load the model in 4-bit NF4", group="model", identity="model")
    backend: Literal["transformers", "openai"] = setting(
        "transformers", "run the model in this process, or call server_url", group="model", identity="model"
    )
    reference_model: str | None = setting(
        None,
        "model to measure the KL divergence to; the base model of the adapter by default",
        group="model",
        identity="model",
    )
    seed: int = setting(0, "seed of sampling and of the bootstrap", group="sampling", identity="model", at_least=0)


class EvaluatedModel:
    """One model under evaluation, shared by all stages that run it.

    Args:
        settings: Which model, and how to load it.
    """

    def __init__(self, settings: EvaluatedModelSettings) -> None:
        """Load nothing yet."""
        self._settings = settings
        self._sampler: Sampler | None = None
        self._tokenizer: Tokenizer | None = None

    @property
    def dtype(self) -> str:
        """The dtype that the weights are loaded in. A server decides this itself."""
        return self._settings.dtype if self._settings.server_url else pick_dtype(self._settings.dtype)

    @property
    def reference_name(self) -> str | None:
        """The model that this one was trained from: `reference_model`, or the adapter's base; None without either."""
        settings = self._settings
        return settings.reference_model or (settings.model_name_or_path if settings.adapter_name_or_path else None)

    @property
    def is_remote(self) -> bool:
        """Whether a server runs the model, so that only its texts are available."""
        return self._settings.backend == "openai"

    def identity(self) -> dict[str, object]:
        """Return the settings that name this model and how it runs, with digests of local weights."""
        identity: dict[str, object] = identity_of(self._settings, "model")
        identity |= {"dtype": self.dtype, "chat_template": read_chat_template(self._settings.chat_template)}
        for name in _WEIGHTS:
            folder = identity[name]
            if isinstance(folder, str) and folder and Path(folder).is_dir():
                identity[f"{name}_weights"] = weights_identity(Path(folder))
        return identity

    def sampler(self) -> Sampler:
        """Return the sampler; load the model on first use."""
        if self._sampler is None:
            settings = self._settings
            loading = {
                "adapter": settings.adapter_name_or_path,
                "dtype": settings.dtype,
                "attn_implementation": settings.attn_implementation,
                "load_in_4bit": settings.load_in_4bit,
            }
            self._sampler = load_sampler(settings.model_name_or_path, settings.model_revision, loading, settings)
        return self._sampler

    def local_sampler(self) -> ModelSampler:
        """Return the sampler of a model in this process, for stages that read its distributions."""
        sampler = self.sampler()
        assert isinstance(sampler, ModelSampler), "the stage should have refused a model on a server"
        return sampler

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer without loading the model."""
        if self._sampler is not None:
            return self._sampler.tokenizer
        if self._tokenizer is None:
            settings = self._settings
            self._tokenizer = load_tokenizer(
                settings.model_name_or_path, settings.model_revision, chat_template=settings.chat_template
            )
        return self._tokenizer

    def load_reference(self) -> Model:
        """Load the reference model; None without one. The caller holds it, so that its memory is freed after use."""
        settings, name = self._settings, self.reference_name
        if name is None:
            return None
        return load_reference_model(
            name,
            settings.model_name_or_path,
            revision=settings.model_revision,
            dtype=settings.dtype,
            attn_implementation=settings.attn_implementation,
            load_in_4bit=settings.load_in_4bit,
        )


def has_one_row(rows: Rows) -> bool:
    """Whether a request whose stage writes one row has it."""
    return len(rows) == 1


def sample_rows(
    path: Path,
    units: Sequence[Sequence[str]],
    sample_unit: Callable[[int], Sequence[Mapping[str, object]]],
    model: EvaluatedModel,
    ranks: Ranks,
    label: str,
    is_complete: Callable[[Rows], bool] = has_one_row,
) -> None:
    """Write the rows of a stage that runs the model, unit by unit; each process does its share, and finished units stay.

    Args:
        path: The JSONL file; each row has a `request_id`.
        units: The request ids of each unit, in order.
        sample_unit: Returns the rows of a unit by its index, those of a request together, in the unit's order.
        model: Loaded only if a unit is left.
        ranks: The processes.
        label: For the progress bar.
        is_complete: Whether the rows of one request are all there.
    """
    work = cast(Callable[[int], Rows], sample_unit)
    run_units(path, units, is_complete, lambda: (work, model.sampler()), ranks, label)
