"""Callbacks of both trainers: a progress bar with pairs/s, and the collator's draws after a resumption."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments


class TrainingProgress(TrainerCallback):
    """A progress bar with loss, pairs/s and time left, on the main process."""

    def __init__(self, pairs_per_step: int) -> None:
        """Take the number of pairs in an optimizer step, over all processes."""
        self.pairs_per_step = pairs_per_step
        self.bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Draw the bar."""
        self.start, self.first_step = time.monotonic(), state.global_step
        if state.is_world_process_zero and not args.disable_tqdm:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", mininterval=1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show the loss, and add pairs/s to the log."""
        seconds = time.monotonic() - self.start
        if not logs or "loss" not in logs or not seconds:
            return
        speed = (state.global_step - self.first_step) * self.pairs_per_step / seconds
        state.log_history[-1]["pairs_per_second"] = round(speed, 2)
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.2f}, {speed:.1f} pairs/s", refresh=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


class ResumeDraws(TrainerCallback):
    """Moves a collator's draws to the step of a resumed training; the trainer skips batches without collating them."""

    def __init__(self, trainer: Trainer) -> None:
        """Take the trainer, whose `data_collator` has a method `skip`."""
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Skip the draws of the batches before this step."""
        if not state.global_step:
            return
        batches = len(self.trainer.get_train_dataloader())
        steps_per_epoch = max(1, -(-batches // args.gradient_accumulation_steps))
        epochs, steps = divmod(state.global_step, steps_per_epoch)
        self.trainer.data_collator.skip(epochs * batches + steps * args.gradient_accumulation_steps)
