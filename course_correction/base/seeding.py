"""Random numbers that depend on a seed and names alone."""

import random


def random_for(seed: int, *parts: object) -> random.Random:
    """Return a generator that depends on `seed` and `parts` alone, not on order, process or hash seed."""
    return random.Random("\x1f".join(map(str, (seed, *parts))))
