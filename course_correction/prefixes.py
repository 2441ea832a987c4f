"""Cut a full harmful response into initial harmful responses, and the texts put around them. Knows nothing of models."""

import random
import re
from bisect import bisect_right

# A mark ends a cut only where white space follows, so that "3.5" and "e.g.:" stay whole.
_MARK = re.compile(r"[.,;:!?](?=\s)")

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

# Each says at once that the speaker turns back: "However," alone would be as well followed by more advice.
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
# Put between an initial harmful response that ends inside a sentence and its trigger.
BREAK_OFF = "..."


def find_cut_positions(full_harmful_response: str) -> list[int]:
    """Return the character positions right after each punctuation mark inside the response, ascending.

    A mark with no text after it is not counted: cutting there would not give a proper prefix.
    """
    end = len(full_harmful_response.rstrip())
    return [match.end() for match in _MARK.finditer(full_harmful_response) if match.end() < end]


def count_marks(full_harmful_response: str) -> int:
    """Return the number of punctuation marks, one that ends the response included."""
    ends = full_harmful_response.rstrip().endswith(tuple(".,;:!?"))
    return len(find_cut_positions(full_harmful_response)) + ends


def cut_initial_harmful_responses(
    full_harmful_response: str,
    num_cuts: int = 4,
    random_source: random.Random | None = None,
    mid_sentence_rate: float = 0.0,
) -> list[str]:
    """Cut into `num_cuts` proper prefixes, shortest first, early cuts and late ones.

    The response is divided into `num_cuts` parts of equal length in characters and one mark is drawn from each, so the
    cuts are spread over the response and never collapse. A part that holds no mark takes the nearest free one.
    Departs from the reference (`process_data.py` at 44da12c), which cuts at multiples of a random stride: D2.

    Args:
        full_harmful_response: The text to cut.
        num_cuts: How many prefixes.
        random_source: Where the draws come from; without it each part takes its first mark.
        mid_sentence_rate: Share of the cuts that are moved back to a word's end inside the clause before the mark, as
            evaluation cuts after any k tokens: D7 of README.md.

    Raises:
        ValueError: If there are fewer than `num_cuts + 1` punctuation marks.
    """
    positions = find_cut_positions(full_harmful_response)
    text = full_harmful_response.rstrip()
    num_marks = count_marks(full_harmful_response)
    if num_marks < num_cuts + 1 or len(positions) < num_cuts:
        raise ValueError(
            f"{num_cuts} cuts need {num_cuts + 1} punctuation marks, the response has {num_marks}. "
            "Drop the row in `select_source_pairs` or lower `num_cuts`."
        )
    chosen: list[int] = []
    first_free = 0
    for part in range(num_cuts):
        # Enough marks must be left for the parts still to come.
        last_free = len(positions) - (num_cuts - part)
        low = max(first_free, bisect_right(positions, len(text) * part // num_cuts))
        high = bisect_right(positions, len(text) * (part + 1) // num_cuts) - 1
        low, high = min(low, last_free), min(high, last_free)
        index = low if high <= low or random_source is None else random_source.randint(low, high)
        chosen.append(index)
        first_free = index + 1
    ends = [positions[index] for index in chosen]
    if random_source is not None and mid_sentence_rate:
        for number, index in enumerate(chosen):
            clause_start = positions[index - 1] if index else 0
            # At least one word of the clause stays, and a first cut holds three words.
            words = [match.end() for match in re.finditer(r"\w(?=\s)", text[: positions[index]])]
            inside = [end for end in words[2:] if end > clause_start]
            if random_source.random() < mid_sentence_rate and inside:
                ends[number] = random_source.choice(inside)
    return [full_harmful_response[:end] for end in ends]


def ends_clause(text: str) -> bool:
    """Say whether a text ends at a punctuation mark or a line's end, where a trigger can follow as a new sentence."""
    return text.rstrip(" ").endswith((*".,;:!?", "\n"))


def join_trigger(initial_response: str, trigger: str) -> tuple[str, int]:
    """Put a trigger after an initial harmful response, breaking off with "..." where that ends inside a sentence.

    Returns:
        The text, and the character where the corrective part begins: the trigger, or the "..." before it.
    """
    begun = initial_response.strip()
    if not begun or ends_clause(begun):
        text = join_texts(begun, trigger)
        return text, len(text) - len(trigger.strip())
    return f"{begun}{BREAK_OFF} {trigger.strip()}", len(begun)


def draw_opener(random_source: random.Random, opener_rate: float) -> str:
    """Draw the one opener of a request, or "" in a share `1 - opener_rate` of the requests.

    Departs from the reference, which redraws it for every cut, so that its prefixes are not nested: D3.
    """
    return random_source.choice(OPENERS) if random_source.random() < opener_rate else ""


def draw_triggers(random_source: random.Random, num_triggers: int = 4) -> list[str]:
    """Draw distinct triggers, in the order in which they are to be used."""
    return random_source.sample(TRIGGERS, num_triggers)


def join_texts(*texts: str) -> str:
    """Join texts by single spaces, leaving out empty ones; the inner text is not touched."""
    return " ".join(text.strip() for text in texts if text.strip())
