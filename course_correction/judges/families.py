"""The family of a model, by its name: judges read the prose of one family better than that of another."""

import re

# In this order: SmolLM and Zephyr are fine-tuned from others, but write their own prose.
_FAMILIES = {
    "smollm2": r"smollm-?2",
    "vicuna": r"vicuna",
    "zephyr": r"zephyr",
    "qwen3": r"qwen-?3",
    "qwen2.5": r"qwen-?2\.5",
    "qwen2": r"qwen-?2(?!\.5)",
    "llama-2": r"llama-?2",
    "llama-3": r"llama-?3",
    "mistral": r"mistral|mixtral",
    "gpt-4": r"gpt-?4",
    "claude": r"claude",
    "gemma": r"gemma",
    "glm": r"glm",
    "phi": r"(?<![a-z])phi",
}


def model_family(name: str) -> str | None:
    """Return the family that a model's name tells: a Hub id, a file's or folder's name; None if it tells none."""
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((family for family, pattern in _FAMILIES.items() if re.search(pattern, last)), None)
