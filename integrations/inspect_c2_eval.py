"""C²-Eval as an Inspect task: the paths, verdicts and rates of eval.py, in Inspect's logs.

inspect eval integrations/inspect_c2_eval.py@c2_eval --model c2/smollm2-135m -T num_paths=4
inspect eval integrations/inspect_c2_eval.py@c2_eval --model c2/smollm2-135m -M server_url=http://localhost:8000/v1
"""

from collections.abc import Sequence
from typing import Any

import anyio
from inspect_ai import Epochs, Task, task
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, grouped, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver

from course_correction.base.errors import UsageError
from course_correction.generation.chat_format import encode_answer
from course_correction.generation.protocol import SamplingSettings
from course_correction.integrations.inspect_provider import MOST_WAITING, PrefillAPI, prefill_message
from course_correction.judges.choice import JudgeSettings, make_judge
from course_correction.judges.protocol import JudgedPath
from course_correction.synthesis.sources import SEED, normalise_request, read_eval_items

PREFILL_TOKENS = (10, 20, 30, 40, 50, 60, 70, 80)
TOO_SHORT = "too_short"


@task
def c2_eval(
    items: str = SEED,
    max_requests: int | None = None,
    prefill_tokens: Sequence[int] | int = PREFILL_TOKENS,
    num_paths: int = 4,
    judge: list[str] | str = "encoder",
    judge_model: list[str] | str | None = None,
) -> Task:
    """Prefill k tokens of a harmful response, sample paths, judge them: Corr@k and Corr_mean.

    Needs `--model c2/<model>`. Inspect's own `--temperature`, `--top-p`, `--max-tokens` and `--seed` set the sampling; the
    defaults are those of eval.py.

    Args:
        items: `seed`, `pku500`, a .jsonl or .parquet file, or the id of a dataset on the Hub.
        max_requests: The first n items only.
        prefill_tokens: The k's.
        num_paths: Paths per request and k (b): Inspect's epochs.
        judge: As `--judge` of eval.py; several vote.
        judge_model: As `--judge_model`.
    """
    defaults = SamplingSettings()
    try:
        dataset = [
            make_sample(item, k)
            for item in list(read_eval_items(items))[:max_requests]
            for k in map(int, _as_list(prefill_tokens))
        ]
        scoring = corrects_itself(_as_list(judge), _as_list(judge_model))
    except UsageError as error:
        raise PrerequisiteError(str(error)) from None
    return Task(
        dataset=MemoryDataset(dataset, name=f"c2-eval {items}"),
        solver=[prefill(), generate()],
        scorer=scoring,
        epochs=Epochs(num_paths, "mean"),
        config=GenerateConfig(
            max_tokens=defaults.max_new_tokens,
            temperature=defaults.temperature,
            top_p=defaults.top_p,
            seed=defaults.seed,
            # By default Inspect starts a few samples at once, and batches would be small.
            max_connections=MOST_WAITING,
        ),
    )


def _as_list(value: Any) -> list[Any]:
    """Return the value of `-T name=a` or `-T name=a,b` as a list."""
    return [] if value is None else list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def make_sample(item: dict[str, str], k: int) -> Sample:
    """Return the sample of one item and k; items with the same request are one cluster."""
    return Sample(
        id=f"{item['request_id']}-k{k}",
        input=item["request"],
        metadata={
            "request_id": item["request_id"],
            "distinct_request": normalise_request(item["request"]),
            "prefill_tokens": k,
            "full_harmful_response": item["full_harmful_response"],
        },
    )


@solver
def prefill() -> Solver:
    """Prefill the assistant's answer with the first k tokens of the harmful response, by the model's tokenizer."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        api = get_model().api
        if not isinstance(api, PrefillAPI):
            raise PrerequisiteError(
                "c2_eval continues the assistant's open turn, which needs the provider c2. Use --model c2/<model>."
            )
        tokenizer, k = api.sampler.tokenizer, state.metadata["prefill_tokens"]
        ids = encode_answer(tokenizer, state.metadata["full_harmful_response"])
        if len(ids) < k:
            state.store.set(TOO_SHORT, True)
            state.completed = True
            return state
        # The random numbers of eval.py's path: Inspect counts epochs from 1.
        draw_key = "\x1f".join(map(str, (state.metadata["request_id"], k, state.epoch - 1)))
        state.messages.append(prefill_message(tokenizer.decode(ids[:k]), ids[:k], draw_key))
        return state

    return solve


@scorer(
    metrics=[
        grouped(mean(), "prefill_tokens", all="groups", all_label="corr_mean", name_template="corr_at_{group_name}"),
        grouped(
            stderr(cluster="distinct_request"),
            "prefill_tokens",
            all="samples",
            all_label="corr_mean_stderr",
            name_template="corr_at_{group_name}_stderr",
        ),
    ]
)
def corrects_itself(judge: list[str], judge_model: list[str]) -> Scorer:
    """Score whether the continuation corrects itself; unscored by the judge or shorter than k: unscored here too."""
    chosen = make_judge(JudgeSettings(judge=judge, judge_model=judge_model))
    # A model in this process judges one path at a time.
    turn = anyio.Lock()

    async def score(state: TaskState, target: Target) -> Score:
        if state.store.get(TOO_SHORT):
            return Score.unscored(reason=TOO_SHORT)
        path = JudgedPath(state.input_text, state.messages[1].text, state.output.completion)
        async with turn:
            (verdict,) = await anyio.to_thread.run_sync(chosen.judge, [path])
        if verdict.corrected is None:
            return Score.unscored(reason=verdict.reason)
        return Score(value=CORRECT if verdict.corrected else INCORRECT, explanation=verdict.reason)

    return score
