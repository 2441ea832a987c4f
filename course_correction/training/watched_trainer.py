"""A DPO trainer with a live progress bar that stops at the first loss that is not finite. Knows nothing of the loss."""

from typing import Any

import torch
from transformers import ProgressCallback
from trl import DPOTrainer

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
