"""Openers and triggers: the texts before and after an initial harmful response. Knows nothing of cuts or models."""

import random

OPENERS: tuple[str, ...] = (
    "Sure, I can help you with that.",
    "Of course! Here is how to go about it.",
    "Certainly, let me walk you through it.",
    "Absolutely, here is what you can do.",
    "Happy to help.",
    "Yes, that is quite doable.",
    "Good question! Here is my advice.",
    "No problem, here are some ideas.",
    "Okay, here is one way to do it.",
    "Here is what tends to work.",
    "Sure thing!",
    "Let me explain how it is done.",
)
# Each trigger states the correction itself: after "However," alone, more harmful advice could follow.
TRIGGERS: tuple[str, ...] = (
    "However, I can't help with this, because",
    "However, I must point out that I won't go on with this:",
    "However, I should not help with this, since",
    "However, I need to stop here:",
    "But I can't go on with this, because",
    "But I should stop here, because",
    "But I won't help with this:",
    "But I have to be honest, I can't recommend this:",
    "Wait, I should not be helping with this:",
    "Wait, I need to stop here, because",
    "Wait, I can't go on with this:",
    "Actually, I can't help with this, since",
    "Actually, I should not go on, because",
    "Actually, I take that back, because",
    "On second thought, I won't help with this, because",
    "On second thought, I can't recommend this:",
    "Sorry, I can't go on with this, because",
    "Sorry, I should not have started this way:",
    "But no, I won't go on with this:",
    "But no, I have to stop here, because",
    "Hold on, I can't help with this:",
    "Hold on, I should not go on like this, since",
)
# Stands between an initial harmful response that ends inside a sentence and its trigger.
BREAK_OFF = "..."


def ends_clause(text: str) -> bool:
    """Return whether a text ends at a punctuation mark or a line end, where a trigger can start a new sentence."""
    return text.rstrip(" ").endswith((*".,;:!?", "\n"))


def join_trigger(initial_response: str, trigger: str) -> tuple[str, int]:
    """Append a trigger to an initial harmful response, with "..." in between if the response ends inside a sentence.

    Returns:
        The text, and the character where the corrective part begins: the trigger, or the "..." before it.
    """
    start = initial_response.strip()
    if not start or ends_clause(start):
        text = join_texts(start, trigger)
        return text, len(text) - len(trigger.strip())
    return f"{start}{BREAK_OFF} {trigger.strip()}", len(start)


def draw_opener(random_source: random.Random, opener_rate: float) -> str:
    """Draw the opener of a request, or "" with probability `1 - opener_rate`.

    Departs from the reference, which draws an opener per cut, so that its prefixes are not nested: D3.
    """
    return random_source.choice(OPENERS) if random_source.random() < opener_rate else ""


def draw_triggers(random_source: random.Random, num_triggers: int = 4) -> list[str]:
    """Draw distinct triggers, in the order of the cuts."""
    return random_source.sample(TRIGGERS, num_triggers)


def join_texts(*texts: str) -> str:
    """Join the texts that are not empty by single spaces. Only outer white space changes."""
    return " ".join(text.strip() for text in texts if text.strip())
