"""The terms of the grouped objective and its packed trees, each by itself: they touch what they should."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.synthesis.ranked_groups import PAIR_RANKS
from course_correction.training.losses import mean_path_nll, pair_losses, retention_kl, selected_logps, transition_loss
from course_correction.training.tree import ancestor_mask, pack_group, sum_paths

COMPLETIONS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=6)


@given(COMPLETIONS, st.lists(st.integers(0, 3), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_packed_tree_holds_every_completion_in_order_and_every_beginning_once(completions, prompt):
    group = pack_group(prompt, completions, [0] * len(completions))
    for completion, path in zip(completions, group.paths, strict=True):
        assert [group.token_ids[index] for index in path] == completion
        assert [group.positions[index] for index in path] == list(range(len(prompt), len(prompt) + len(completion)))
        assert [group.parents[index] for index in path] == [len(prompt) - 1, *path[:-1]]
    beginnings = {tuple(completion[: n + 1]) for completion in completions for n in range(len(completion))}
    assert len(group.token_ids) == len(prompt) + len(beginnings)


@given(COMPLETIONS)
@settings(max_examples=30, deadline=None)
def test_a_packed_token_attends_to_its_own_sequence_alone(completions):
    group = pack_group([7, 8], completions, [0] * len(completions))
    mask = ancestor_mask(group.parents, len(group.token_ids) + 2)
    for path in group.paths:
        for depth, index in enumerate(path):
            assert set(mask[index].nonzero()[:, 0].tolist()) == {0, 1, *path[: depth + 1]}
    assert mask.any(1).all()


def test_pair_losses_are_dpo_of_each_pair():
    ratios = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    loss, margins = pair_losses(ratios, beta=0.3)
    expected = [
        -math.log(1 / (1 + math.exp(-0.3 * (group[i] - group[j])))) for group in ratios.tolist() for i, j in PAIR_RANKS
    ]
    assert loss.item() == pytest.approx(sum(expected) / 30, rel=1e-5)
    assert margins.shape == (2, 15)


def test_the_corrective_term_ignores_tokens_outside_the_corrective_part():
    logps = torch.tensor([[0.0, -1.0, -2.0, -30.0]], requires_grad=True)
    loss = mean_path_nll(logps, [[[1, 2], []]])
    loss.backward()
    assert loss.item() == pytest.approx(1.5)
    assert logps.grad.tolist() == [[0.0, -0.5, -0.5, 0.0]]


def test_retention_is_zero_for_equal_models_and_positive_otherwise():
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(1))
    assert [value.item() for value in retention_kl(logits, logits)] == pytest.approx([0, 0, 0], abs=1e-6)
    assert all(value.item() > 0.1 for value in retention_kl(logits, logits.flip(-1)))


def test_retention_and_its_gradient_are_those_of_torchs_kl_divergences():
    generator = torch.Generator().manual_seed(2)
    logits, reference = (torch.randn(4, 11, generator=generator, dtype=torch.float32) for _ in range(2))
    logits.requires_grad_()
    policy_logps, reference_logps = logits.log_softmax(-1), reference.log_softmax(-1)
    options = {"log_target": True, "reduction": "batchmean"}
    forward_kl = torch.nn.functional.kl_div(policy_logps, reference_logps, **options)
    reverse_kl = torch.nn.functional.kl_div(reference_logps, policy_logps, **options)
    (expected,) = torch.autograd.grad((forward_kl + reverse_kl) / 2, logits)
    loss, *directions = retention_kl(logits, reference)
    assert [value.item() for value in directions] == pytest.approx([forward_kl.item(), reverse_kl.item()], rel=1e-5)
    assert torch.allclose(torch.autograd.grad(3 * loss, logits)[0], 3 * expected, atol=1e-7)
    # A weight of 4 on the only token of weight counts it four times; the directions are reported unweighted.
    weights = torch.tensor([0.0, 4.0, 0.0, 0.0])
    weighted, *unchanged = retention_kl(logits, reference, weights)
    assert weighted.item() == pytest.approx(retention_kl(logits[1:2], reference[1:2])[0].item(), rel=1e-5)
    assert [value.item() for value in unchanged] == [value.item() for value in directions]
    gradient = torch.autograd.grad(weighted, logits)[0]
    assert gradient[0].abs().max() == 0 and torch.allclose(gradient[1], 4 * expected[1], atol=1e-6)


def test_shared_tokens_count_in_every_path_that_holds_them():
    assert sum_paths(torch.tensor([[0.0, 1.0, 2.0, 4.0]]), [[[1, 2], [1, 3]]]).tolist() == [[3.0, 5.0]]


def _groups(count: int) -> list[dict[str, Any]]:
    from course_correction.synthesis.run import select_pairs
    from course_correction.synthesis.settings import SynthesisSettings
    from course_correction.synthesis.teachers import written_teacher

    options = SynthesisSettings(max_requests=count)
    return written_teacher(options).write_groups(select_pairs(options).pairs)


@pytest.mark.parametrize("positions", [3, 150])
def test_selected_log_probabilities_and_their_gradient_are_torchs(positions):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(positions, 13, generator=generator)
    rows, tokens = (torch.randint(high, (9,), generator=generator) for high in (positions, 13))
    set_rows, members = torch.tensor([0, 2, 2]), torch.tensor([1, 5, 7])
    results = []
    for function in ("own", "torch"):
        given = logits.clone().requires_grad_()
        if function == "own":
            single, several = selected_logps(given, rows, tokens, [(set_rows, members)])
        else:
            logps = given.log_softmax(-1)
            single, several = logps[rows, tokens], logps[set_rows][:, members].logsumexp(-1)
        (single * torch.arange(1.0, 10)).sum().add((several**2).sum()).backward()
        results.append((single.detach(), several.detach(), given.grad))
    for own, expected in zip(*results, strict=True):
        assert torch.allclose(own, expected, atol=1e-5)


def test_turning_back_with_the_target_probability_costs_nothing():
    logps = torch.tensor([0.9, 0.6, 0.25]).log().requires_grad_()
    loss = transition_loss(logps, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) / 3)
    assert logps.grad.tolist() == pytest.approx([0, 0, -1 / 3])


def test_transitions_stand_at_word_ends_behind_the_opener_and_tell_clauses_apart(tiny_tokenizer):
    from course_correction.training.collator import AFTER_CLAUSE, INSIDE_CLAUSE, NO_TRANSITION, find_transitions

    opener, harmful = "Sure, here you go.", "Take two, then hide the third one."
    response = f"{opener} {harmful}"
    ids = tiny_tokenizer(response, add_special_tokens=False)["input_ids"]
    kinds = find_transitions(tiny_tokenizer, ids, response, opener)
    for index, kind in enumerate(kinds):
        before, after = tiny_tokenizer.decode(ids[:index]), tiny_tokenizer.decode(ids[: index + 1])
        if len(before) <= len(opener):
            assert kind == NO_TRANSITION
        elif before.endswith((",", ".")):
            assert kind == AFTER_CLAUSE
        else:
            assert kind == (INSIDE_CLAUSE if after[len(before)].isspace() else NO_TRANSITION)
    assert {AFTER_CLAUSE, INSIDE_CLAUSE} <= set(kinds)


def test_corrective_tokens_spell_the_trigger_and_what_follows(tiny_tokenizer):
    from course_correction.training.collator import tokenize_group

    group = _groups(1)[0]
    row = tokenize_group(tiny_tokenizer, group)
    for rank in range(1, 5):
        ids = row["completion_ids"][rank][row["correction_tokens"][rank] :]
        text = tiny_tokenizer.decode(ids, skip_special_tokens=True).strip()
        start = group["responses"][rank][group["correction_starts"][rank] :]
        assert start.removeprefix("... ").startswith(group["triggers"][rank - 1])
        assert text.replace(" ", "").startswith(start.replace(" ", "")[:12])
    assert row["correction_tokens"][0] == 0
    assert row["correction_tokens"][5] == len(row["completion_ids"][5])
