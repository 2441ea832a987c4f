"""The processes of one launch, by torchrun or `accelerate launch`. Knows nothing of what they do."""

import os
from datetime import timedelta
from typing import Any


class Ranks:
    """This process among those that were launched together.

    Attributes:
        rank: 0 is the main process.
        size: How many there are.
    """

    def __init__(self) -> None:
        """Join the others, if there are any."""
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self._state: Any = None
        if self.size > 1:
            import torch
            from accelerate import PartialState

            # The fastest waits at the end for the slowest, however long that takes.
            self._state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))

    @classmethod
    def alone(cls) -> "Ranks":
        """Return a rank of its own, for work that only the main process does."""
        ranks = cls.__new__(cls)
        ranks.rank, ranks.size, ranks._state = 0, 1, None
        return ranks

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes what there is one of."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all have come here. A process that fails takes the others down, by the launcher."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def leave(self) -> None:
        """Take leave of the others, once each has done its share."""
        if self._state is not None:
            self._state.destroy_process_group()
            self._state = None
