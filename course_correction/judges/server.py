"""A judge on an OpenAI-compatible server, called in parallel, its answers cached on disk. Knows nothing of rows or rates."""

import logging
import math
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from course_correction.base.errors import UsageError
from course_correction.base.files import cache_folder, text_digest
from course_correction.base.redaction import public_name
from course_correction.generation.openai_client import Server, ServerError
from course_correction.judges.majority import MajorityJudge
from course_correction.judges.prompt import build_judge_messages, yes_probability
from course_correction.judges.protocol import Judge, JudgedPath, Verdict

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat.chat_completion import Choice

logger = logging.getLogger(__name__)


class OpenAIJudge:
    """Asks a chat model on any OpenAI-compatible server (`Server`, which takes `settings`); departs in D6.

    A path whose call fails after all retries is unscored. Answers are cached on disk by question and model, without any
    text, so that a question is paid for once.

    Args:
        model: Its name there.
        base_url: The server; None is OpenAI's own.
        threshold: If given, P(yes) against P(no) is read from the first token's log-probabilities, which the server must
            return, and a path is corrected from this probability.
        settings: Of `Server`.
    """

    def __init__(
        self, model: str = "gpt-4o", base_url: str | None = None, threshold: float | None = None, **settings: Any
    ) -> None:
        """Make the client; nothing is sent yet."""
        self.name = f"openai/{public_name(model)}" + (" by probability" if threshold is not None else "")
        self.model, self.threshold = model, threshold
        self._server = Server(base_url, "judge", "--judge_base_url", **settings)
        self._is_first = True
        # Probabilities and words answer different requests, so they have separate files.
        kind = [] if threshold is None else ["probability"]
        self._file = cache_folder() / "verdicts" / f"{text_digest(self._server.name, model, *kind)}.jsonl"
        self._known: dict[str, float] = {}
        self._writing = threading.Lock()
        if self._file.exists():
            for line in self._file.read_text().splitlines():
                # A line that a crash cut short does not match, and is asked again.
                if match := re.fullmatch(r'\{"key": "(\w+)", "yes": ([01]\.\d+)\}', line):
                    self._known[match[1]] = float(match[2])

    def calls_needed(self, paths: Sequence[JudgedPath]) -> tuple[int, int]:
        """Return the number of calls that the paths need, and of tokens to send, estimated as a quarter of the letters."""
        new = {self._key(path): path for path in paths if path.continuation.strip() and self._key(path) not in self._known}
        letters = sum(len(message["content"]) for path in new.values() for message in build_judge_messages(path))
        return len(new), letters // 4

    def scores(self, paths: Sequence[JudgedPath]) -> list[float | None]:
        """Return P(yes) of each path; None where it is unscored."""
        answers = self._ask_all(paths)
        return [None if isinstance(answer, str) else answer for answer in answers]

    def judge(self, paths: Sequence[JudgedPath]) -> list[Verdict]:
        """Judge the paths; an empty continuation is unscored without a call."""
        verdicts = []
        for answer in self._ask_all(paths):
            if isinstance(answer, str):
                verdicts.append(Verdict(None, answer))
            elif self.threshold is None:
                verdicts.append(Verdict(answer >= 0.5, "yes" if answer >= 0.5 else "no"))
            else:
                verdicts.append(Verdict(answer >= self.threshold, f"score {answer:.2f}"))
        return verdicts

    def _ask_all(self, paths: Sequence[JudgedPath]) -> list[float | str]:
        """Return P(yes) of each path, or why there is none."""
        todo = [path for path in paths if path.continuation.strip()]
        # One call precedes all others, so that an error that the user must fix is reported once and early.
        first = [self._ask(path) for path in todo[: 1 if self._is_first else 0]]
        self._is_first = self._is_first and not first
        with ThreadPoolExecutor(self._server.max_parallel) as pool:
            answers = iter([*first, *pool.map(self._ask, todo[len(first) :])])
        return [next(answers) if path.continuation.strip() else "empty" for path in paths]

    @staticmethod
    def _key(path: JudgedPath) -> str:
        return text_digest(*(message["content"] for message in build_judge_messages(path)))

    def _ask(self, path: JudgedPath) -> float | str:
        options: dict[str, Any] = {"messages": build_judge_messages(path), "temperature": 0, "seed": 42}
        if self.threshold is None:
            options |= {"max_tokens": 4}
        else:
            options |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}

        def ask(client: "OpenAI") -> float | None:
            answer = client.chat.completions.create(model=self.model, **options)
            return _read_word(answer.choices[0]) if self.threshold is None else self._read_share(answer.choices[0])

        key = self._key(path)
        if key in self._known:
            return self._known[key]
        try:
            share = self._server.call(ask, self.model)
        except ServerError as error:
            return error.reason
        if share is None:
            return "unparsable"
        with self._writing:
            self._known[key] = share
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "a") as file:
                file.write(f'{{"key": "{key}", "yes": {share:.6f}}}\n')
        return share

    def _read_share(self, choice: "Choice") -> float | None:
        """Return P(yes) against P(no) at the first token; None if another word is far likelier."""
        if choice.logprobs is None or not choice.logprobs.content:
            raise UsageError(f"{self._server.name} returns no log-probabilities. Remove judge_by_probability.")
        shares = {"yes": 0.0, "no": 0.0}
        for entry in choice.logprobs.content[0].top_logprobs:
            word = entry.token.strip().lower()
            if word in shares:
                shares[word] += math.exp(entry.logprob)
        return yes_probability(shares["yes"], shares["no"])


def _read_word(choice: "Choice") -> float | None:
    word = re.match(r"\W*(yes|no)\b", choice.message.content or "", re.IGNORECASE)
    return float(word[1].lower() == "yes") if word else None


def check_calls(judge: Judge, paths: Sequence[JudgedPath], max_calls: int | None) -> None:
    """Log what a judge on a server will cost, and refuse costs above the limit.

    Raises:
        UsageError: If it needs more calls than allowed.
    """
    for one in judge.judges if isinstance(judge, MajorityJudge) else [judge]:
        if not isinstance(one, OpenAIJudge):
            continue
        calls, tokens = one.calls_needed(paths)
        logger.info(f"{one.name}: {calls} calls, about {tokens:,} tokens to send")
        if max_calls is not None and calls > max_calls:
            raise UsageError(
                f"{one.name} needs {calls} calls, but max_judge_calls is {max_calls}. Raise it, or judge fewer paths."
            )
