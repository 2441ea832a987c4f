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

TRIGGERS: tuple[str, ...] = (
    "However, I must point out that",
    "Wait, I need to stop here:",
    "On second thought, I should say plainly that",
    "But I have to be honest with you:",
    "Actually, let me take that back, because",
    "Hold on. I should not go on like this, since",
    "But before this goes any further, I want to say that",
    "I need to correct myself here:",
    "Let me stop myself there, because",
    "That said, I cannot leave it at that:",
    "Hmm, thinking about it again, I see that",
    "But I have to pause here, because",
    "I was wrong to begin like this:",
    "Having said that, I owe you a better answer:",
    "No, let me rethink this:",
    "Still, I would be doing you no favour if I went on, because",
    "But this is where I have to turn around:",
    "Let me step back for a moment:",
    "I realise that I should not be advising this:",
    "But in fairness I must add that",
    "Sorry, I should not have started this way:",
    "But let me be clear:",
)


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
    full_harmful_response: str, num_cuts: int = 4, random_source: random.Random | None = None
) -> list[str]:
    """Cut at punctuation into `num_cuts` proper prefixes, shortest first, early cuts and late ones.

    The response is divided into `num_cuts` parts of equal length in characters and one mark is drawn from each, so the
    cuts are spread over the response and never collapse. A part that holds no mark takes the nearest free one.
    Departs from the reference (`process_data.py` at 44da12c), which cuts at multiples of a random stride: D2.

    Args:
        full_harmful_response: The text to cut.
        num_cuts: How many prefixes.
        random_source: Where the draws come from; without it each part takes its first mark.

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
    return [full_harmful_response[: positions[index]] for index in chosen]


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
