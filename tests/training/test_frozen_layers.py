"""Layers that policy and reference share are run once, and nothing else changes."""

from typing import Any

import pytest
import torch

from course_correction.training.frozen_layers import find_frozen_layers
from course_correction.training.settings import ObjectiveSettings
from tests.support.chat_models import build_tiny_model
from tests.support.rows import read_data

TERMS = {"correction_nll_weight": 0.5, "transition_weight": 0.75, "retention_weight": 2.0, "transition_rows": 2}


def build_trainer(tmp_path: Any, tokenizer: Any, dataset_folder: Any, targets: str | None) -> Any:
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import DPOConfig

    from course_correction.training.trainer import GroupedDPOTrainer

    folder = tmp_path / "model"
    build_tiny_model("llama", tokenizer, num_hidden_layers=4, tie_word_embeddings=True).save_pretrained(folder)
    training = DPOConfig(
        output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=2,
        max_length=None, activation_checkpointing=False, model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    adapter = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM") if targets else None
    trainer = GroupedDPOTrainer(
        str(folder),
        args=training,
        train_dataset=load_dataset(str(dataset_folder), "ranked", split="train").select(range(3)),
        processing_class=tokenizer,
        peft_config=adapter,
        objective=ObjectiveSettings(objective="grouped", **TERMS),
        benign_rows=read_data("benign_train")[:6],
    )
    generator = torch.Generator().manual_seed(0)
    for weights in trainer.model.parameters():
        if weights.requires_grad:
            weights.data += torch.randn(weights.shape, generator=generator) * 0.02
    return trainer


def loss_and_gradients(trainer: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, dict(batch), False)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def count_runs(trainer: Any, batch: dict[str, Any]) -> list[int]:
    """Return how often each decoder layer's attention ran."""
    runs = [0] * 4
    layers = trainer.accelerator.unwrap_model(trainer.model).get_base_model().model.layers

    def counter(index: int) -> Any:
        def count(*_: Any) -> None:
            runs[index] += 1

        return count

    hooks = [layer.self_attn.register_forward_hook(counter(index)) for index, layer in enumerate(layers)]
    trainer._compute_loss(trainer.model, dict(batch), False)
    for hook in hooks:
        hook.remove()
    return runs


def test_sharing_frozen_layers_changes_no_bit_of_loss_and_gradients_and_halves_their_runs(
    tmp_path, tiny_tokenizer, dataset_folder, monkeypatch
):
    trainer = build_trainer(tmp_path, tiny_tokenizer, dataset_folder, r".*layers\.[23]\..*_proj")
    batch = next(iter(trainer.get_train_dataloader()))
    # A tree, two batches of benign rows for both models, and two of harmful rows for the policy alone.
    assert count_runs(trainer, batch) == [5, 5, 8, 8]
    loss, gradients = loss_and_gradients(trainer, batch)
    monkeypatch.setattr("course_correction.training.trainer.find_frozen_layers", lambda model: [])
    assert count_runs(trainer, batch) == [8, 8, 8, 8]
    plain_loss, plain_gradients = loss_and_gradients(trainer, batch)
    assert loss.equal(plain_loss) and loss > 0
    assert gradients.keys() == plain_gradients.keys()
    assert all(gradients[name].equal(plain_gradients[name]) for name in gradients)
    assert all("forward" not in vars(module) for module in trainer.model.get_base_model().model.layers)


@pytest.mark.parametrize("targets", ["all-linear", None], ids=["adapter on all layers", "all weights"])
def test_no_layer_is_shared_where_the_first_is_trained(targets, tmp_path, tiny_tokenizer, dataset_folder):
    trainer = build_trainer(tmp_path, tiny_tokenizer, dataset_folder, targets)
    assert trainer._shared_layers() == []


def test_no_layer_is_frozen_where_the_embedding_is_trained(tiny_tokenizer):
    model = build_tiny_model("llama", tiny_tokenizer)
    assert find_frozen_layers(model) == []
    model.requires_grad_(False)
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(True)
    assert find_frozen_layers(model) == [model.model.layers[0]]
    model.model.embed_tokens.weight.requires_grad_(True)
    assert find_frozen_layers(model) == []


def test_no_layer_is_shared_in_an_architecture_that_is_not_known(tiny_tokenizer):
    model = build_tiny_model("llama", tiny_tokenizer).requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    assert find_frozen_layers(model) == [model.model.layers[0]]
    model.config.model_type = "gemma3n_text"
    assert find_frozen_layers(model) == []


def test_outputs_that_are_more_than_hidden_states_are_not_shared():
    from course_correction.training.frozen_layers import recorded, replayed

    class Pair(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
            return hidden + 1, None

    layers, states = [Pair()], []
    with recorded(layers, states):
        layers[0](torch.zeros(2))
    assert states == []
    with replayed(layers, states):
        assert layers[0](torch.zeros(2))[0].tolist() == [1, 1]
