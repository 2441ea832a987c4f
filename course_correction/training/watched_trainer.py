"""A DPO trainer with a live progress bar that stops at the first loss that is not finite. Knows nothing of the loss."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback
from transformers.trainer_utils import rotate_checkpoints
from trl import DPOTrainer

from course_correction.base.checkpoints import UNFINISHED, publish_checkpoint
from course_correction.base.errors import UsageError
from course_correction.training.callbacks import TrainingProgress


class WatchedDPOTrainer(DPOTrainer):
    """Stock TRL with a progress bar and a check of each loss.

    Attributes:
        pairs_per_row: Preference pairs in a row of the training data.
    """

    pairs_per_row = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Replace the callback of transformers that prints a line per step by a progress bar."""
        super().__init__(*args, **kwargs)
        self.remove_callback(ProgressCallback)
        rows_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self.add_callback(TrainingProgress(rows_per_step * self.pairs_per_row))

    def _get_output_dir(self, *args: Any, **kwargs: Any) -> str:
        """Return where a checkpoint is written; `_save_checkpoint` then moves it to the output folder."""
        return str(Path(super()._get_output_dir(*args, **kwargs)) / UNFINISHED)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint beside the others and rename it when it is whole; then remove those beyond the limit.

        Source: transformers 5.23, `Trainer._save_checkpoint`, writes in place and removes older ones at the end.
        """
        folder, limit = Path(self.args.output_dir), self.args.save_total_limit
        if self.args.should_save:
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.args.save_total_limit = None
        try:
            super()._save_checkpoint(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        # All processes write parts of sharded weights.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            publish_checkpoint(folder)
            rotate_checkpoints(output_dir=str(folder), save_total_limit=limit, use_mtime=False)
        self.accelerator.wait_for_everyone()

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run a step.

        Raises:
            UsageError: If the loss of a process is NaN or infinite. The weights are still those of the step before.
        """
        loss = super().training_step(*args, **kwargs)
        finite = self.accelerator.gather(torch.isfinite(loss.detach()).all().reshape(1))
        if not finite.all():
            step = self.state.global_step + 1
            raise UsageError(
                f"The loss of step {step} is {loss.item()}. Training stopped; earlier checkpoints are kept in "
                f"{self.args.output_dir}. Lower learning_rate, or train in bfloat16 or float32 instead of float16."
            )
        return loss
