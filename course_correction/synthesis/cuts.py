"""Cut a full harmful response into initial harmful responses. Knows nothing of models, openers or triggers."""

import random
import re
from bisect import bisect_right

# A cut ends at a mark only where white space follows, so that "3.5" and "e.g.:" stay whole.
_MARK = re.compile(r"[.,;:!?](?=\s)")


def find_cut_positions(full_harmful_response: str) -> list[int]:
    """Return the character positions right after each punctuation mark inside the response, ascending.

    The last mark is left out if no text follows it: a cut there would not be a proper prefix.
    """
    end = len(full_harmful_response.rstrip())
    return [match.end() for match in _MARK.finditer(full_harmful_response) if match.end() < end]


def count_marks(full_harmful_response: str) -> int:
    """Return the number of punctuation marks, including one at the end of the response."""
    ends = full_harmful_response.rstrip().endswith(tuple(".,;:!?"))
    return len(find_cut_positions(full_harmful_response)) + ends


def cut_initial_harmful_responses(
    full_harmful_response: str,
    num_cuts: int = 4,
    random_source: random.Random | None = None,
    mid_sentence_rate: float = 0.0,
) -> list[str]:
    """Cut into `num_cuts` proper prefixes, shortest first.

    The response is divided into `num_cuts` parts of equal length in characters and one mark is drawn from each part, so the
    cuts are spread over the response and differ from each other. A part without a mark takes the nearest free mark.
    Departs from the reference (`process_data.py` at 44da12c), which cuts at multiples of a random stride: D2.

    Args:
        full_harmful_response: The text to cut.
        num_cuts: How many prefixes.
        random_source: Draws the marks; without it each part takes its first mark.
        mid_sentence_rate: Share of the cuts that are moved back to the end of a word inside the clause before the mark,
            because evaluation cuts after any k tokens: D7.

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
        # Enough marks must remain for the parts that follow.
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
            # A cut keeps at least one word of the clause and at least three words in all.
            words = [match.end() for match in re.finditer(r"\w(?=\s)", text[: positions[index]])]
            inside = [end for end in words[2:] if end > clause_start]
            if random_source.random() < mid_sentence_rate and inside:
                ends[number] = random_source.choice(inside)
    return [full_harmful_response[:end] for end in ends]
