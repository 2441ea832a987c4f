"""What both trainers do beside their loss: stop on a loss that is no number, show progress, find their place again."""

import time
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback
from trl import DPOTrainer

from course_correction.base.errors import UsageError


class WatchedTraining:
    """A mixin for trainers: a live bar with pairs/s, and an end at the first loss that is not finite.

    Attributes:
        pairs_a_row: Preference pairs in a row of the training data.
    """

    pairs_a_row = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Put the bar in the place of the one that prints a line a step."""
        super().__init__(*args, **kwargs)
        self.remove_callback(ProgressCallback)
        rows_a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self.add_callback(TrainingProgress(rows_a_step * self.pairs_a_row))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Do a step.

        Raises:
            UsageError: If a process's loss is NaN or infinite; the weights are still those of the step before.
        """
        loss = super().training_step(*args, **kwargs)
        finite = self.accelerator.gather(torch.isfinite(loss.detach()).all().reshape(1))
        if not finite.all():
            step = self.state.global_step + 1
            raise UsageError(
                f"The loss of step {step} is {loss.item()}. Training stopped; the checkpoints before it are kept in "
                f"{self.args.output_dir}. Lower learning_rate, or train in bfloat16 or float32 instead of float16."
            )
        return loss


class PairwiseDPOTrainer(WatchedTraining, DPOTrainer):
    """Stock TRL, watched."""


class TrainingProgress(TrainerCallback):
    """A progress bar with loss, pairs/s and time left, on the main process."""

    def __init__(self, pairs_a_step: int) -> None:
        """Take the number of pairs that an optimizer step trains on, all processes together."""
        self.pairs_a_step = pairs_a_step
        self.bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draw the bar."""
        self.start, self.first_step = time.monotonic(), state.global_step
        if state.is_world_process_zero and not args.disable_tqdm:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", mininterval=1)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move it."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show the loss, and add pairs/s to what is logged."""
        seconds = time.monotonic() - self.start
        if not logs or "loss" not in logs or not seconds:
            return
        speed = (state.global_step - self.first_step) * self.pairs_a_step / seconds
        state.log_history[-1]["pairs_per_second"] = round(speed, 2)
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.2f}, {speed:.1f} pairs/s", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close it."""
        if self.bar is not None:
            self.bar.close()


class ResumeDraws(TrainerCallback):
    """Moves a collator's draws on to where a resumed training stands; the trainer skips batches without collating them."""

    def __init__(self, trainer: Any) -> None:
        """Take the trainer, whose `data_collator` has a method `skip`."""
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Skip what the batches before this step drew."""
        if not state.global_step:
            return
        batches = len(self.trainer.get_train_dataloader())
        steps_an_epoch = max(1, -(-batches // args.gradient_accumulation_steps))
        epochs, steps = divmod(state.global_step, steps_an_epoch)
        self.trainer.data_collator.skip(epochs * batches + steps * args.gradient_accumulation_steps)


def memory_advice(settings: dict[str, Any]) -> str:
    """Return the line to show when memory is used up, with the settings that would lower it."""
    values = ", ".join(f"{name} {value}" for name, value in settings.items() if value)
    return (
        f"Out of memory with {values}. Lower per_device_train_batch_size (and raise gradient_accumulation_steps), then "
        "retention_rows, retention_tokens and transition_rows; set activation_checkpointing true, or load_in_4bit true."
    )
