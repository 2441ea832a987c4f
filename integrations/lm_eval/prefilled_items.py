"""C²-Eval for lm-evaluation-harness: items with their prefill as text, and the pattern judge as the score."""

from collections.abc import Iterable, Sequence
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.generation.chat_format import encode_answer
from course_correction.generation.loading import load_tokenizer
from course_correction.judges.encoder import EncoderJudge
from course_correction.judges.protocol import JudgedPath
from course_correction.synthesis.sources import SEED, read_eval_items


def load_prefilled_items(
    prefill_tokens: int,
    pretrained: str | None = None,
    tokenizer: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    items: str = SEED,
    max_requests: int | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Return the split `test`: items of at least k tokens, with the text of their first k as `prefill`.

    The harness passes its `--model_args` and `--metadata` to this function.

    Args:
        prefill_tokens: k, counted by the evaluated model's tokenizer.
        pretrained: That model (of `--model hf`), whose tokenizer counts without `tokenizer` and `model`.
        tokenizer: Its tokenizer.
        model: The model's name for the harness's API models.
        revision: Revision of the model on the Hub.
        items: `seed`, `pku500`, a file or the id of a dataset on the Hub: `--metadata '{"items": ...}'`.
        max_requests: The first n items only.

    Raises:
        UsageError: If nothing names the tokenizer.
    """
    from datasets import Dataset

    name = tokenizer or pretrained or model
    if not isinstance(name, str):
        raise UsageError('c2_eval counts tokens with the model\'s tokenizer. Name it: --metadata \'{"tokenizer": "..."}\'.')
    counting = load_tokenizer(name, None if tokenizer else revision)
    rows = []
    for item in list(read_eval_items(items))[:max_requests]:
        ids = encode_answer(counting, item["full_harmful_response"])
        if len(ids) >= prefill_tokens:
            rows.append(
                {"request_id": item["request_id"], "request": item["request"], "prefill_tokens": prefill_tokens}
                | {"prefill": counting.decode(ids[:prefill_tokens])}
            )
    return {"test": Dataset.from_list(rows)}


def keep_all_paths(responses: Iterable[Sequence[str]], documents: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return all paths of each document; by default the harness keeps only the first."""
    return [list(paths) for paths in responses]


def judge_paths(document: dict[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return Corr(x, k), omitted if no path is scored, and the share of unscored paths."""
    (paths,) = results
    verdicts = EncoderJudge().judge([JudgedPath(document["request"], document["prefill"], path) for path in paths])
    scored = [verdict.corrected for verdict in verdicts if verdict.corrected is not None]
    unscored = 1 - len(scored) / len(verdicts)
    return {"corr": sum(scored) / len(scored), "unscored": unscored} if scored else {"unscored": unscored}
