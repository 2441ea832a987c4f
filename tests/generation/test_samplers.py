"""Laws of sampling from a model in this process: little memory, long prefills, prefixes that cannot be shared."""

from typing import Any

import pytest

from course_correction.base.errors import UsageError
from course_correction.generation.chat_format import render_prompt
from course_correction.generation.protocol import Completion, Prefill, Tokenizer
from course_correction.generation.samplers import ModelSampler
from tests.support.chat_models import build_tiny_model
from tests.support.server import GREEDY, make_prefills


def test_running_out_of_memory_shrinks_batches_and_changes_no_path(
    tiny_sampler: ModelSampler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prefills = make_prefills(tiny_sampler.tokenizer, 4, 3)
    wanted = tiny_sampler.sample(prefills, GREEDY)
    for shares in (True, False):
        sampler = ModelSampler(tiny_sampler.model, tiny_sampler.tokenizer, 100, shares)
        continue_batch, sizes = sampler._continue, []

        def in_little_memory(batch: list, *arguments: Any, run: Any = continue_batch, sizes: list = sizes) -> Any:
            sizes.append(sum(map(len, batch)))
            if sizes[-1] > 5:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return run(batch, *arguments)

        monkeypatch.setattr(sampler, "_continue", in_little_memory)
        assert sampler.sample(prefills, GREEDY) == wanted
        assert sizes[0] == 24 and sizes[-1] <= 5 and sampler.batch_size <= 5
        assert "Out of memory with 24 rows: continuing with at most 12" in caplog.text


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        ("DefaultCPUAllocator: can't allocate memory", UsageError, "Out of memory with a single row"),
        ("shapes differ", RuntimeError, "shapes differ"),
    ],
    ids=["memory too small for one row", "another error"],
)
def test_memory_too_small_for_one_row_is_a_one_line_error_and_other_errors_are_raised(
    message: str, error: type, words: str, tiny_sampler: ModelSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = ModelSampler(tiny_sampler.model, tiny_sampler.tokenizer, 100)

    def fail(*_: Any) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(sampler, "_continue", fail)
    with pytest.raises(error, match=words):
        sampler.sample(make_prefills(tiny_sampler.tokenizer), GREEDY)


def test_a_prefill_too_long_for_the_model_is_named(tiny_tokenizer: Tokenizer) -> None:
    sampler = ModelSampler(build_tiny_model("llama", tiny_tokenizer, max_position_embeddings=60), tiny_tokenizer, 16)
    with pytest.raises(UsageError, match=r"^req-7: a prefill of .* exceed the model's 60"):
        sampler.sample([Prefill("How?", (5,) * 60, "req-7\x1f60\x1f0")], GREEDY)


def test_prefixes_that_cannot_be_shared_are_logged_and_change_no_path(
    tiny_sampler: ModelSampler, tiny_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    windowed = ModelSampler(build_tiny_model("mistral", tiny_tokenizer, sliding_window=16), tiny_tokenizer, 16)
    assert "prefixes cannot be shared" in caplog.text
    assert len(windowed.sample(make_prefills(tiny_tokenizer), GREEDY)) == 12
    apart = ModelSampler(tiny_sampler.model, tiny_tokenizer, 5, share_prefix=False)
    prefills = make_prefills(tiny_tokenizer)
    assert apart.sample(prefills, GREEDY) == tiny_sampler.sample(prefills, GREEDY)
    assert isinstance(tiny_sampler.sample(prefills[:1], GREEDY)[0], Completion)
    assert tiny_sampler.paths_sampled >= 13 and tiny_sampler.tokens_sampled > 0
    assert render_prompt(tiny_tokenizer, "How?")
