"""Fit the encoder judge, and write encoder_judge.safetensors. Takes half an hour on one CPU core with AVX512-BF16.

First on this project's texts, then on answers that people labelled (`--people_files`, the files of XSTest) with a part of
the texts again. With --leave_out a model's answers are left out and measured instead, and nothing is written.

python -m benchmarks.fit_encoder_judge --people_files xstest_v2_completions_*.csv
"""

import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.fit_pattern_judge import (
    CUT_OUT_ANSWER,
    WRITTEN,
    correction_examples,
    read_data,
    refusal_examples,
)
from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.settings import parse_settings, setting
from course_correction.judges.encoder import ANSWER_WORDS, MAX_TOKENS, QUESTIONS, WEIGHTS_FILE, encoder_source
from course_correction.judges.human_labels import COMPLIANCE, PARTIAL, PATH_WORDS, LabelledAnswer, read_labelled_answers
from course_correction.judges.pattern import CORRECTS, REFUSES
from course_correction.synthesis.triggers import TRIGGERS, join_texts

# These refuse in a way that their first words do not show, so their first words are no example of a correction.
LATE_KINDS = frozenset(
    {
        "late_refusal",
        "partial",
        "subject_changed",
        "counter_question",
        "other_question_answered",
        "violence_not_answer",
        "wrong_target",
        "partial_then_general",
    }
)
SEED_SHARE = 0.4  # Of the texts cut out of the seed set, which are many and easy.
BATCH_SIZE, BATCHES_SORTED = 32, 32


@dataclass(frozen=True)
class Example:
    """A text, the question it is an example of, the answer, and its weight."""

    text: str
    question: str
    label: bool
    weight: float


@dataclass
class EncoderFitSettings:
    """What the encoder judge is fitted to, and how."""

    people_files: list[str] = setting(
        default_factory=list, help="files of XSTest with labelled answers", group="data", identity=()
    )
    leave_out: str | None = setting(
        None, "model whose answers are not used; scores of its answers are written instead", group="data", identity=()
    )
    start_from: str | None = setting(
        None, "state of the first stage, written by an earlier run, instead of fitting it", group="data", identity=()
    )
    epochs: int = setting(2, "passes over this project's texts", group="training", identity=(), at_least=1)
    learning_rate: float = setting(1e-3, "of the first stage; half of it in the second", group="training", identity=())
    lora_r: int = setting(16, "rank of the updates", group="training", identity=(), at_least=1)
    repeats: int = setting(2, "passes over the answers that people labelled", group="training", identity=(), at_least=1)
    replayed: int = setting(3500, "texts of the first stage that the second repeats", group="training", identity=())
    max_examples: int | None = setting(None, "use only so many texts", group="training", identity=(), at_least=1)
    seed: int = setting(0, "seed", group="training", identity=())
    output_file: str = setting(str(WEIGHTS_FILE), "file to write the weights to", group="output", identity=())


def triggers_with_advice(seed: int) -> list[str]:
    """Return triggers of C²-Syn with more of the harmful advice behind them, two for each training request.

    A model that learns to say the triggers and goes on must not be counted as corrected. Word patterns cannot learn this:
    with these texts they miss a quarter of the real corrections behind triggers.
    """
    random_source = random.Random(seed)
    texts = []
    for row in read_data("requests_train"):
        words = row["full_harmful_response"].split()
        # The advice goes on at a new sentence, or after a colon.
        starts = [place for place in range(12, len(words) - 8) if words[place - 1].endswith((".", "!", "?", ":"))]
        for _ in range(2 if starts else 0):
            start = random_source.choice(starts)
            advice = " ".join(words[start : start + random_source.randint(8, 22)])
            if random_source.random() < 0.7:
                advice = advice[0].lower() + advice[1:]
            texts.append(join_texts(random_source.choice(TRIGGERS), advice))
    return texts


def own_examples(seed: int) -> list[Example]:
    """Return the texts of this project for both questions, none of which the labelled set holds."""
    source = random.Random(seed)
    examples = [
        Example(row["continuation"], CORRECTS, row["corrected"], 1.0 if row["kind"].startswith("assumed") else 1.5)
        for row in read_data("judge_train")
    ]
    examples += [Example(text, CORRECTS, False, 1.0) for text in triggers_with_advice(seed)]
    known = {example.text for example in examples}
    for text, label, _ in correction_examples(seed):
        if text not in known and source.random() < SEED_SHARE:
            examples.append(Example(text, CORRECTS, label, 1.0))
    for text, label, weight in refusal_examples(seed):
        start = " ".join(text.split()[:ANSWER_WORDS])
        examples.append(
            Example(start, REFUSES, label, 1.0 if weight == CUT_OUT_ANSWER else 1.5 if weight == WRITTEN else 1.0)
        )
    for row in read_data("refusal_train"):
        if "kind" in row and row["kind"] not in LATE_KINDS:
            examples.append(Example(first_words(row["answer"], PATH_WORDS), CORRECTS, row["refuses"], 1.0))
    return examples


def people_examples(answers: list[LabelledAnswer], seed: int) -> list[Example]:
    """Return answers that people labelled: their beginnings for refusals, their first words for corrections."""
    source = random.Random(seed)
    examples = []
    for one in answers:
        length = source.choice((40, 60, ANSWER_WORDS))
        examples.append(Example(first_words(one.answer, length), REFUSES, one.label != COMPLIANCE, 1.5))
        if one.label != PARTIAL:
            examples.append(Example(first_words(one.answer, PATH_WORDS), CORRECTS, one.label != COMPLIANCE, 1.0))
    return examples


def first_words(text: str, count: int) -> str:
    """Return the first `count` words of a text."""
    return " ".join(text.split()[:count])


def make_network(rank: int) -> Any:
    """Return the encoder with low-rank updates, and one output per question."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            encoder = AutoModel.from_pretrained(**encoder_source())
            updates = LoraConfig(
                r=rank, lora_alpha=2 * rank, target_modules=["query", "key", "value", "dense"], exclude_modules=".*pooler.*"
            )
            self.encoder = get_peft_model(encoder, updates)
            self.head = torch.nn.Linear(encoder.config.hidden_size, len(QUESTIONS))

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            return self.head((states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))

    return Network()


def train(network: Any, examples: list[Example], epochs: int, learning_rate: float, seed: int) -> None:
    """Train by binary cross-entropy of the question that each example answers."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(**encoder_source())
    tokens = [tokenizer(one.text, truncation=True, max_length=MAX_TOKENS)["input_ids"] for one in examples]
    batches = [batch for epoch in range(epochs) for batch in shuffled_batches(tokens, seed + epoch)]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=len(batches) + 1, pct_start=0.1)
    network.train()
    started, mean_loss = time.monotonic(), 0.0
    for step, batch in enumerate(batches, 1):
        longest = max(len(tokens[index]) for index in batch)
        ids, mask = torch.zeros(len(batch), longest, dtype=torch.long), torch.zeros(len(batch), longest)
        for place, index in enumerate(batch):
            ids[place, : len(tokens[index])] = torch.tensor(tokens[index])
            mask[place, : len(tokens[index])] = 1
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(ids, mask).float()
        chosen = outputs[torch.arange(len(batch)), torch.tensor([QUESTIONS.index(examples[i].question) for i in batch])]
        labels = torch.tensor([float(examples[index].label) for index in batch])
        weights = torch.tensor([examples[index].weight for index in batch])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(chosen, labels, weight=weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        mean_loss = 0.97 * mean_loss + 0.03 * loss.item()
        if step % 100 == 0 or step == len(batches):
            shown = mean_loss / (1 - 0.97**step)
            print(f"step {step} of {len(batches)}, loss {shown:.3f}, {time.monotonic() - started:.0f} s", flush=True)
    network.eval()


def shuffled_batches(tokens: list[list[int]], seed: int) -> list[list[int]]:
    """Return batches of indices in random order, in each of which the texts are of similar length."""
    source = random.Random(seed)
    order = list(range(len(tokens)))
    source.shuffle(order)
    batches = []
    for start in range(0, len(order), BATCH_SIZE * BATCHES_SORTED):
        part = sorted(order[start : start + BATCH_SIZE * BATCHES_SORTED], key=lambda index: len(tokens[index]))
        batches += [part[place : place + BATCH_SIZE] for place in range(0, len(part), BATCH_SIZE)]
    source.shuffle(batches)
    return batches


def write_weights(network: Any, path: Path) -> None:
    """Write the updates, with their scale inside, and the output layer, in float16."""
    import torch
    from safetensors.torch import save_file

    weights = {}
    for name, module in network.encoder.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            weights[f"{name}.lora_A"] = module.lora_A["default"].weight
            weights[f"{name}.lora_B"] = module.lora_B["default"].weight * module.scaling["default"]
    weights |= {"head.weight": network.head.weight, "head.bias": network.head.bias}
    save_file({name: value.detach().to(torch.float16).contiguous() for name, value in weights.items()}, path)


def main() -> None:
    """Fit both stages and write the file."""
    import torch

    (settings,) = parse_settings([EncoderFitSettings], description=__doc__)
    torch.manual_seed(settings.seed)
    answers = [answer for file in settings.people_files for answer in read_labelled_answers(Path(file))]
    if settings.leave_out and settings.leave_out not in {one.family for one in answers}:
        raise UsageError(f"leave_out is {settings.leave_out!r}, but people_files holds no such model.")
    own = own_examples(settings.seed)
    random.Random(settings.seed).shuffle(own)
    own = own[: settings.max_examples]
    network = make_network(settings.lora_r)
    stage = Path(settings.output_file).with_suffix(".first-stage.pt")
    if settings.start_from:
        network.load_state_dict(torch.load(settings.start_from))
    else:
        train(network, own, settings.epochs, settings.learning_rate, settings.seed)
        torch.save(network.state_dict(), stage)
    used = [replace(one) for one in answers if one.family != settings.leave_out][: settings.max_examples]
    if used:
        source = random.Random(settings.seed + 1)
        examples = people_examples(used, settings.seed) * settings.repeats
        examples += source.sample(own, min(settings.replayed, len(own)))
        train(network, examples, 1, settings.learning_rate / 2, settings.seed + 1)
    write_weights(network, Path(settings.output_file))
    print(f"{len(own)} texts, {len(used)} answers: {settings.output_file}")


if __name__ == "__main__":
    run_script(main)
