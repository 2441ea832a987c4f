"""Laws of the sampled distribution: its nucleus, its probabilities, and settings outside their range."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.base.errors import UsageError
from course_correction.generation.decoding import path_uniforms, sample_tokens
from course_correction.generation.protocol import SamplingSettings


def _nucleus(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Return the renormalised nucleus by a plain loop. Shape [vocabulary]."""
    scaled = logits.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    kept, held = np.zeros_like(probabilities), 0.0
    for index in np.argsort(-probabilities, kind="stable"):
        if held >= top_p:
            break
        kept[index] = probabilities[index]
        held += probabilities[index]
    return kept / kept.sum()


DISTRIBUTIONS = {
    "peaked": (40, 3.0, 0.8, 0.7),
    "whole": (40, 1.0, 1.0, 1.0),
    "cold": (300, 2.0, 0.3, 0.9),
    "flat, more candidates than are looked at first": (900, 0.3, 1.0, 0.7),
    "flat, whole": (900, 0.3, 1.0, 1.0),
}


@pytest.mark.parametrize("case", DISTRIBUTIONS)
def test_sampled_tokens_follow_the_renormalised_nucleus(case: str) -> None:
    vocabulary, spread, temperature, top_p = DISTRIBUTIONS[case]
    logits = np.random.default_rng(1).normal(0, spread, vocabulary).astype(np.float32)
    draws = 8_000
    uniforms = torch.tensor(path_uniforms(3, case, draws))
    tokens = sample_tokens(torch.tensor(logits).expand(draws, -1), uniforms, temperature, top_p)
    assert tokens.shape == (draws,) and tokens.dtype == torch.long
    wanted = _nucleus(logits, temperature, top_p)
    counts = np.bincount(tokens.numpy(), minlength=vocabulary)
    assert counts[wanted == 0].sum() == 0
    # Tokens that are expected less than 5 times make one bin, as the test asks.
    rare = (wanted * draws < 5) & (wanted > 0)
    common = wanted * draws >= 5
    observed = np.append(counts[common], counts[rare].sum())
    expected = np.append(wanted[common], wanted[rare].sum()) * draws
    if expected[-1] < 5:
        observed, expected = observed[:-1], expected[:-1] * observed[:-1].sum() / expected[:-1].sum()
    assert len(observed) < 2 or scipy.stats.chisquare(observed, expected).pvalue > 0.001


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=30),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.05, 3),
    st.floats(0.01, 1),
)
def test_a_sampled_token_always_lies_in_the_nucleus(
    logits: list[float], uniform: float, temperature: float, top_p: float
) -> None:
    values = np.array(logits, dtype=np.float32)
    token = sample_tokens(torch.tensor(values)[None], torch.tensor([uniform]).double(), temperature, top_p).item()
    scaled = values.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    # The tokens before it hold less than top_p; ties and rounding are tolerated.
    assert probabilities[probabilities > probabilities[token] * (1 + 1e-4)].sum() < top_p + 1e-5
    assert probabilities[token] > 0


def test_the_most_likely_token_is_always_in_the_nucleus_and_temperature_zero_takes_it() -> None:
    logits = torch.randn(50, 400, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(50, generator=torch.Generator().manual_seed(1)).double()
    best = logits.argmax(-1)
    assert torch.equal(sample_tokens(logits, uniforms, 0, 0.7), best)
    assert torch.equal(sample_tokens(logits, uniforms, 0.8, 1e-9), best)
    assert torch.equal(sample_tokens(logits, torch.zeros(50).double(), 0.8, 0.7), best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_logits_is_sampled_as_if_it_were_alone(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    # A flat row needs the whole vocabulary, a peaked one a few tokens. In bfloat16 many tokens are equally likely.
    scales = torch.tensor([8.0, 4.0, 4.0, 2.0, 1.0, 0.0])[:, None]
    logits = (torch.randn(6, 5000, generator=generator) * scales).to(dtype).repeat(20, 1)
    uniforms = torch.rand(120, generator=generator).double()
    together = sample_tokens(logits, uniforms, 0.8, 0.9)
    alone = torch.cat([sample_tokens(logits[row : row + 1], uniforms[row : row + 1], 0.8, 0.9) for row in range(120)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("change", [{"max_new_tokens": 0}, {"temperature": -0.1}, {"top_p": 0}, {"top_p": 1.1}])
def test_sampling_settings_outside_their_range_are_refused_with_the_value(change: dict[str, float]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(UsageError, match=f"{name}.*{value}"):
        SamplingSettings(**change)
