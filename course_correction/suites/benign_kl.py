"""KL divergence of a trained model from its reference on answers to benign requests, where training should not move it."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from course_correction.base.files import write_json
from course_correction.generation.evaluated_model import EvaluatedModel
from course_correction.generation.protocol import Model, Tokenizer
from course_correction.report.schema import BenignKL
from course_correction.synthesis.sources import read_benign_rows

logger = logging.getLogger(__name__)

POSITIONS = 64
FILE = "benign_kl.json"


def measure_benign_kl(folder: Path, model: EvaluatedModel, max_benign: int) -> BenignKL | None:
    """Return the KL divergence to the reference model on held-out benign answers; measured once per folder.

    Args:
        folder: The run folder, where benign_kl.json keeps the result.
        model: The model under evaluation, in this process.
        max_benign: The number of answers.

    Returns:
        None without a reference or without answers, and for a model on a server, which does not show its distributions.
    """
    if model.reference_name is None or not max_benign or model.is_remote:
        return None
    path = folder / FILE
    if not path.exists():
        logger.info(f"Measuring the KL divergence to {model.reference_name} on benign answers")
        sampler = model.local_sampler()
        rows = read_benign_rows("eval")[:max_benign]
        write_json(path, compute_benign_kl(sampler.model, model.load_reference(), sampler.tokenizer, rows))
    measured: BenignKL = json.loads(path.read_text(encoding="utf-8"))
    return measured


def compute_benign_kl(model: Model, reference: Model, tokenizer: Tokenizer, rows: Sequence[dict[str, Any]]) -> BenignKL:
    """Compute KL divergences on benign answers, with the exact distributions over the vocabulary.

    Means are over all answer tokens; `by_position` has the first 64 positions of an answer.

    Args:
        model: The trained model.
        reference: The model that it was trained from, with the same vocabulary.
        tokenizer: Of both.
        rows: Benign rows with `prompt` and `response`.
    """
    import torch
    from tqdm.auto import tqdm

    from course_correction.generation.chat_format import tokenize_benign
    from course_correction.training.losses import kl_by_token

    totals, count = torch.zeros(2, dtype=torch.float64), 0
    by_position, answers = torch.zeros(POSITIONS, dtype=torch.float64), torch.zeros(POSITIONS, dtype=torch.float64)
    with torch.no_grad():
        for row in tqdm(rows, desc="KL on benign answers", unit="answer", mininterval=1):
            ids, start = tokenize_benign(tokenizer, row)
            input_ids = torch.tensor([ids[:-1]], device=model.device)
            options = {"input_ids": input_ids, "use_cache": False, "logits_to_keep": len(ids) - start}
            values = kl_by_token(model(**options).logits[0], reference(**options).logits[0]).double().cpu()
            totals, count = totals + values.sum(1), count + values.shape[1]
            first = values[0, :POSITIONS]
            by_position[: len(first)] += first
            answers[: len(first)] += 1
    kl, reverse_kl = (totals / max(1, count)).tolist()
    positions = (by_position / answers.clamp(min=1))[answers > 0].tolist()
    return {"kl": kl, "reverse_kl": reverse_kl, "tokens": count, "by_position": [round(value, 5) for value in positions]}
