"""How far a trained model has moved from its reference where it should not: on answers to benign requests."""

from typing import Any

POSITIONS = 64


def benign_drift(model: Any, reference: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Measure KL divergences on benign answers, in nats a token, with the exact distributions over the vocabulary.

    Args:
        model: The trained model.
        reference: The model that it was trained from; same vocabulary.
        tokenizer: Of both.
        rows: Benign rows with `prompt` and `response`.

    Returns:
        `kl`: mean of KL(reference || model) over all answer tokens, `reverse_kl`: the other direction, `tokens`: their
        number, `by_position`: mean KL(reference || model) at each of the first 64 places of an answer.
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
            found = kl_by_token(model(**options).logits[0], reference(**options).logits[0]).double().cpu()
            totals, count = totals + found.sum(1), count + found.shape[1]
            first = found[0, :POSITIONS]
            by_position[: len(first)] += first
            answers[: len(first)] += 1
    kl, reverse_kl = (totals / max(1, count)).tolist()
    positions = (by_position / answers.clamp(min=1))[answers > 0].tolist()
    return {"kl": kl, "reverse_kl": reverse_kl, "tokens": count, "by_position": [round(value, 5) for value in positions]}
