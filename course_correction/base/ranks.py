"""The processes of one launch, by torchrun or `accelerate launch`. Knows nothing of their work."""

import os
from datetime import timedelta
from typing import Any


class Ranks:
    """This process among those that were launched together.

    Attributes:
        rank: Index of this process. 0 is the main process.
        size: Number of processes.
    """

    def __init__(self) -> None:
        """Join the other processes, if there are any."""
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self._state: Any = None
        if self.size > 1:
            import torch
            from accelerate import PartialState

            # The fastest process waits at the end for the slowest, which may take days.
            self._state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))

    @classmethod
    def alone(cls) -> "Ranks":
        """Return a single rank, for work that only the main process does."""
        ranks = cls.__new__(cls)
        ranks.rank, ranks.size, ranks._state = 0, 1, None
        return ranks

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes what exists once."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes have called this. If one fails, the launcher ends the others."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def leave(self) -> None:
        """Leave the group of processes, after the last wait."""
        if self._state is not None:
            self._state.destroy_process_group()
            self._state = None
