"""What the reference model computes once and keeps on disk. Knows nothing of the objective."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from course_correction.base.files import cache_folder, chunked, write_json
from course_correction.generation.decoding import SamplingSettings, continue_prefills
from course_correction.generation.loading import weights_identity

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A weight is read once for all rows of a batch: on a CPU a small batch costs nearly as much as a large one.
_ANSWERS_PER_BATCH = 100


def compute_once(kind: str, digest: str, key: str, compute: Callable[[], Any], accelerator: Accelerator) -> Any:
    """Return a value from the cache folder; where it is missing, the main process computes and keeps it.

    Args:
        kind: Its folder in the cache.
        digest: Its file name, a digest of what decides it.
        key: Its key in that JSON file.
        compute: Computes it; called on the main process only.
        accelerator: The processes of the training, which all wait for it.
    """
    path = cache_folder() / kind / f"{digest}.json"
    if not path.exists() and accelerator.is_main_process:
        write_json(path, {key: compute()})
    accelerator.wait_for_everyone()
    return json.loads(path.read_text())[key]


def model_identity(model: PreTrainedModel) -> str:
    """Return a text that changes with the weights of a model and with how it computes."""
    config = model.config
    name = str(config._name_or_path)
    weights = weights_identity(Path(name)) if Path(name).is_dir() else f"{name} {config._commit_hash}"
    return f"{weights} {config.dtype} {config._attn_implementation}"


def answer_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[str],
    prefills: Sequence[list[int]],
    max_new_tokens: int,
    seed: int,
) -> list[list[int]]:
    """Return the token ids of a model's greedy answers, in the order of the prefills; the model is put in eval mode.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        requests: A key of each prefill.
        prefills: Token ids of the rendered requests.
        max_new_tokens: Length of an answer.
        seed: Recorded in the sampling settings; greedy decoding draws nothing.
    """
    order = sorted(range(len(prefills)), key=lambda index: len(prefills[index]))
    answers: list[list[int]] = [[]] * len(prefills)
    greedy = SamplingSettings(max_new_tokens, temperature=0, seed=seed)
    model.eval()
    for batch in tqdm(chunked(order, _ANSWERS_PER_BATCH), desc="own benign answers", unit="batch"):
        rows, keys = [prefills[index] for index in batch], [requests[index] for index in batch]
        for index, continuation in zip(batch, continue_prefills(model, tokenizer, rows, keys, greedy), strict=True):
            answers[index] = list(continuation.token_ids)
    return answers
