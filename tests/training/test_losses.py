"""The grouped objective is stock DPO on the fifteen pairs; its terms are added and logged, its side rows drawn evenly."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.base.errors import UsageError
from course_correction.synthesis.ranked_groups import pairs_table, ranked_table
from course_correction.training.collator import split_by_length
from course_correction.training.settings import ObjectiveSettings
from tests.support.rows import read_data


def test_the_start_of_a_benign_answer_weighs_more(tiny_model_folder, tiny_tokenizer, tmp_path):
    terms = {"retention_weight": 1.0, "retention_start_boost": 3.0, "retention_rows": 2, "retention_tokens": 9}
    _, grouped = _trainers(tiny_model_folder, tmp_path, tiny_tokenizer, True, **terms)
    weights = next(iter(grouped.get_train_dataloader()))["retention_weights"].reshape(2, 9)
    assert weights[0].tolist() == pytest.approx([1 + 3 * 0.5 ** (place / 8) for place in range(9)])
    assert weights[1].equal(weights[0])


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ([], []),
        ([7], [[7]]),
        ([5, 5], [[5], [5]]),
        ([9, 2, 8, 3, 2], [[2, 2, 3], [8, 9]]),
        ([1, 1, 1, 30], [[1, 1, 1], [30]]),
    ],
)
def test_side_rows_go_in_two_parts_that_are_padded_least(lengths, parts):
    rows = [([0] * length, [length] * length) for length in lengths]
    assert [[len(ids) for ids, _ in part] for part in split_by_length(rows)] == parts


def _short_group() -> dict[str, Any]:
    """Make a group whose log-probabilities are small: float32 keeps seven digits of their sums."""
    from dataclasses import replace

    from course_correction.synthesis.run import select_pairs
    from course_correction.synthesis.settings import SynthesisSettings
    from course_correction.synthesis.teachers import written_teacher

    options = SynthesisSettings(max_requests=1, opener_rate=0.0)
    pair = replace(
        select_pairs(options).pairs[0],
        request="How do I keep it?",
        full_harmful_response="Take it early, hide it well, look calm, say little, then go home.",
        safe_response="I won't help with that.",
        correction="it is theirs.",
    )
    return written_teacher(options).write_groups([pair])[0]


def _trainers(
    folder: Any, tmp_path: Any, tokenizer: Any, peft: bool, attention: str = "sdpa", **objective: Any
) -> tuple[Any, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    from course_correction.training.trainer import GroupedDPOTrainer

    ranked = ranked_table([_short_group()])

    def arguments(rows: int) -> Any:
        return DPOConfig(
            output_dir=str(tmp_path / "out"),
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=rows,
            max_length=None,
            beta=0.2,
            activation_checkpointing=False,
            model_init_kwargs={"dtype": "float32", "attn_implementation": attention},
        )

    def adapter() -> Any:
        return LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM") if peft else None

    stock = DPOTrainer(
        str(folder),
        args=arguments(15),
        train_dataset=Dataset(pairs_table(ranked)).select_columns(["prompt", "chosen", "rejected"]),
        processing_class=tokenizer,
        peft_config=adapter(),
    )
    settings_ = ObjectiveSettings(objective="grouped", **objective)
    grouped = GroupedDPOTrainer(
        str(folder),
        args=arguments(1),
        train_dataset=Dataset(ranked),
        processing_class=tokenizer,
        peft_config=adapter(),
        objective=settings_,
        benign_rows=read_data("benign_train")[:6] if settings_.retention_weight else [],
    )
    # Far enough from the reference that the loss is not log 2, near enough that float32 holds 1e-5.
    scale = 0.02 if peft else 0.001
    generator = torch.Generator().manual_seed(0)
    other = dict(grouped.model.named_parameters())
    for name, weights in stock.model.named_parameters():
        if weights.requires_grad:
            weights.data += torch.randn(weights.shape, generator=generator) * scale
            other[name].data.copy_(weights.data)
    return stock, grouped


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("peft", [True, False], ids=["lora", "all weights"])
def test_grouped_loss_and_gradients_equal_stock_dpo_on_the_fifteen_pairs(
    peft, attention, tiny_model_folder, tiny_tokenizer, tmp_path
):
    stock, grouped = _trainers(tiny_model_folder, tmp_path, tiny_tokenizer, peft, attention)
    assert grouped.model.config._attn_implementation == attention
    losses = []
    for trainer in (stock, grouped):
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        loss = trainer._compute_loss(trainer.model, batch, False)
        loss.backward()
        losses.append(loss.item())
    assert losses[0] != pytest.approx(math.log(2), abs=1e-4)
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    other = dict(grouped.model.named_parameters())
    difference = total = 0.0
    for name, weights in stock.model.named_parameters():
        if weights.requires_grad:
            difference += (weights.grad - other[name].grad).norm().item() ** 2
            total += weights.grad.norm().item() ** 2
    assert math.sqrt(difference / total) < 1e-4


def test_every_term_is_added_and_logged(tiny_model_folder, tiny_tokenizer, tmp_path):
    weights = {"correction_nll_weight": 0.5, "safe_nll_weight": 0.25, "transition_weight": 0.75, "retention_weight": 2.0}
    _, grouped = _trainers(tiny_model_folder, tmp_path, tiny_tokenizer, True, transition_rows=1, dpo_weight=0.5, **weights)
    batch = next(iter(grouped.get_train_dataloader()))
    loss = grouped._compute_loss(grouped.model, batch, False).item()
    parts = {name: values[-1] for name, values in grouped._metrics["train"].items()}
    retention = (parts["loss/retention_kl"] + parts["loss/retention_reverse_kl"]) / 2
    expected = 0.5 * parts["loss/dpo"] + 0.5 * parts["loss/correction_nll"] + 0.25 * parts["loss/safe_nll"]
    assert loss == pytest.approx(expected + 0.75 * parts["loss/transition"] + 2 * retention, rel=1e-5)
    assert min(retention, parts["loss/transition"], parts["loss/safe_nll"]) > 0
    distances = [parts[f"rewards/accuracy_distance_{distance}"] for distance in range(1, 6)]
    counts = [5, 4, 3, 2, 1]
    mean = sum(count * accuracy for count, accuracy in zip(counts, distances, strict=True)) / 15
    assert mean == pytest.approx(parts["rewards/accuracies"])


@given(st.integers(1, 7), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_draws_use_every_row_before_any_again_and_can_be_skipped(size, counts, seed):
    from course_correction.training.collator import Draws

    drawn = [index for draws in [Draws(size, seed)] for count in counts for index in draws.take(count)]
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size]) == list(range(size))
    resumed = Draws(size, seed)
    resumed.skip(counts[0])
    assert drawn[counts[0] :] == resumed.take(sum(counts[1:]))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("dpo_weight", -1.0, "at least 0"),
        ("retention_start_boost", -1.0, "at least 0"),
        ("transition_target", 0.0, "above 0 and at most 1"),
        ("transition_target", 1.5, "above 0 and at most 1"),
        ("transition_rows", -1, "at least 0"),
        ("correction_nll_tokens", 0, "at least 1"),
        ("retention_rows", 0, "at least 1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, value, wanted):
    with pytest.raises(UsageError, match=f"{name} is {value}, but must be {wanted}"):
        ObjectiveSettings(**{name: value})


def test_terms_that_stock_training_lacks_are_refused():
    with pytest.raises(UsageError, match="needs objective: grouped"):
        ObjectiveSettings(objective="pairwise", retention_weight=1.0)
    with pytest.raises(UsageError, match="dpo_weight needs objective: grouped"):
        ObjectiveSettings(objective="pairwise", dpo_weight=0.5)
    with pytest.raises(UsageError, match="no other term trains corrections"):
        ObjectiveSettings(dpo_weight=0.0, retention_weight=1.0)


def test_an_empty_retention_set_is_refused(tmp_path):
    from course_correction.training.data import read_retention_rows

    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(UsageError, match="no benign row"):
        read_retention_rows(str(tmp_path / "none.jsonl"))
