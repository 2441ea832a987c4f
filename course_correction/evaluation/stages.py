"""One evaluation in its folder: sample paths, answer benign prompts, judge. The work behind eval.py."""

import json
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.files import chunked, read_jsonl, text_digest, write_json
from course_correction.base.ranks import Ranks
from course_correction.base.resumable_rows import BENIGN_ANSWERS_FILE, PROMPTS_PER_UNIT, run_units
from course_correction.generation.chat_format import encode_answer, render_closed_turn
from course_correction.generation.choice import load_sampler
from course_correction.generation.loading import (
    load_reference_model,
    load_tokenizer,
    pick_dtype,
    read_chat_template,
    weights_identity,
)
from course_correction.generation.protocol import Prefill
from course_correction.synthesis.sources import is_hub_id, last_commit, read_benign_rows, read_eval_items
from course_correction.synthesis.triggers import OPENERS

logger = logging.getLogger(__name__)


class Evaluation:
    """One evaluation in its output folder: sampling and judging; each stage goes on where it stopped."""

    def __init__(self, settings: Any) -> None:
        """Read the items of eval.py's `EvaluationSettings`; the model is loaded only if something is left to sample."""
        self.settings = settings
        self.folder = Path(settings.output_dir)
        self.items_revision = settings.items_revision
        if is_hub_id(settings.items) and self.items_revision is None:
            self.items_revision = last_commit(settings.items)
        self.items = list(read_eval_items(settings.items, self.items_revision))[: settings.max_requests]
        if not self.items:
            raise UsageError(f"{settings.items} holds no item.")
        repeated = [name for name, count in Counter(item["request_id"] for item in self.items).items() if count > 1]
        if repeated:
            raise UsageError(f"{settings.items}: {len(repeated)} request_ids occur twice, the first is {repeated[0]}.")
        self.by_id = {item["request_id"]: item for item in self.items}
        self.units = chunked(self.items, settings.requests_per_unit)
        self._sampler: Any = None
        self._tokenizer: Any = None
        self._answer_ids: dict[str, list[int]] = {}

    def sampler(self) -> Any:
        """Load on first use."""
        if self._sampler is None:
            settings = self.settings
            self._sampler = load_sampler(
                settings.model_name_or_path,
                settings.model_revision,
                {
                    "adapter": settings.adapter_name_or_path,
                    "dtype": settings.dtype,
                    "attn_implementation": settings.attn_implementation,
                    "load_in_4bit": settings.load_in_4bit,
                },
                settings,
            )
        return self._sampler

    def sampling_identity(self) -> dict[str, Any]:
        """Return what decides the sampled rows: other values in the same folder are refused."""
        names = (
            "items prefill_tokens num_paths max_new_tokens temperature top_p benign_max_new_tokens requests_per_unit "
            "prefill_mode max_benign"
        )
        identity = self.model_identity() | {name: getattr(self.settings, name) for name in names.split()}
        identity["num_requests"] = len(self.items)
        identity["items_digest"] = text_digest(*(text for item in self.items for text in item.values()))
        return identity

    def model_identity(self) -> dict[str, Any]:
        """Return which model is evaluated, and how it is run."""
        names = (
            "model_name_or_path model_revision adapter_name_or_path dtype attn_implementation load_in_4bit reference_model "
            "share_prefix batch_size backend server_url server_model seed"
        )
        identity = {name: getattr(self.settings, name) for name in names.split()}
        if not self.settings.server_url:
            identity["dtype"] = pick_dtype(self.settings.dtype)
        identity["chat_template"] = read_chat_template(self.settings.chat_template)
        for name in ("model_name_or_path", "adapter_name_or_path", "reference_model"):
            folder = Path(getattr(self.settings, name) or "")
            if getattr(self.settings, name) and folder.is_dir():
                identity[f"{name}_weights"] = weights_identity(folder)
        return identity

    def sample(self, ranks: Ranks) -> None:
        """Write generations.jsonl: a row for each path, or one marked `too_short` for an item shorter than k."""
        settings = self.settings

        def is_complete(rows: list[dict[str, Any]]) -> bool:
            short = sum(row.get("too_short", False) for row in rows)
            return len(rows) - short == (len(settings.prefill_tokens) - short) * settings.num_paths

        self.run_stage(
            "generations.jsonl",
            [[item["request_id"] for item in unit] for unit in self.units],
            is_complete,
            lambda unit: self.sample_items(self.units[unit]),
            ranks,
            "sampling",
        )

    def run_stage(self, name: str, units: list[list[str]], is_complete: Any, work: Any, ranks: Ranks, label: str) -> None:
        """Write rows unit by unit, each process its share, going on where an earlier run stopped.

        Args:
            name: The JSONL file in the evaluation's folder; each row has a `request_id`.
            units: The request ids of each unit, in order.
            is_complete: Whether the rows of one request id are all there.
            work: Returns the rows of a unit by its index, those of a request together, in the unit's order.
            ranks: The processes.
            label: For the progress bar.
        """
        run_units(self.folder / name, units, is_complete, lambda: (work, self.sampler()), ranks, label)

    def sample_items(self, items: list[dict[str, str]]) -> list[dict[str, Any]]:
        """Sample all paths of some items. Rows by item, then k, then path."""
        from course_correction.generation.decoding import SamplingSettings

        settings, sampler = self.settings, self.sampler()
        sampling = SamplingSettings(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)
        places, begun = [], []
        for item in items:
            answer = tuple(encode_answer(sampler.tokenizer, item["full_harmful_response"]))
            for k in sorted(settings.prefill_tokens):
                prompt, start, is_long_enough = None, answer[:k], k <= len(answer)
                if settings.prefill_mode == "reference":
                    # Here k counts words, and a shorter response stands whole.
                    text = begin_as_reference(item, k, settings.seed)
                    prompt, start = tuple(render_closed_turn(sampler.tokenizer, item["request"], text)), ()
                    is_long_enough = True
                for path in range(settings.num_paths if is_long_enough else 0):
                    places.append((item["request_id"], k, path))
                    begun.append(Prefill(item["request"], start, "\x1f".join(map(str, places[-1])), prompt))
                if not is_long_enough:
                    places.append((item["request_id"], k, None))
        written = iter(sampler.sample(begun, sampling) if begun else [])
        rows = []
        for request_id, k, path in places:
            row = {"request_id": request_id, "prefill_tokens": k, "path": path}
            if path is None:
                rows.append(row | {"too_short": True})
            else:
                one = next(written)
                rows.append(row | {"continuation": one.text, "num_tokens": one.num_tokens, "ended": one.ended})
        return rows

    def answer_benign(self, ranks: Ranks) -> None:
        """Write benign_answers.jsonl: the model's greedy answers to the held-out benign prompts."""
        from course_correction.generation.decoding import SamplingSettings

        units = chunked(read_benign_rows("eval")[: self.settings.max_benign], PROMPTS_PER_UNIT)
        sampling = SamplingSettings(self.settings.benign_max_new_tokens, temperature=0, seed=self.settings.seed)

        def answer(unit: int) -> list[dict[str, Any]]:
            begun = [Prefill(row["prompt"], (), row["request_id"]) for row in units[unit]]
            answers = self.sampler().sample(begun, sampling)
            return [
                {"request_id": row["request_id"], "answer": written.text}
                for row, written in zip(units[unit], answers, strict=True)
            ]

        ids = [[row["request_id"] for row in unit] for unit in units]
        self.run_stage(BENIGN_ANSWERS_FILE, ids, lambda rows: len(rows) == 1, answer, ranks, "benign prompts")

    def reference_name(self) -> str | None:
        """Return the model that this one was trained from: `reference_model`, or an adapter's base; None without either."""
        settings = self.settings
        return settings.reference_model or (settings.model_name_or_path if settings.adapter_name_or_path else None)

    def load_reference(self, name: str) -> Any:
        """Return the reference model."""
        settings = self.settings
        return load_reference_model(
            name,
            settings.model_name_or_path,
            revision=settings.model_revision,
            dtype=settings.dtype,
            attn_implementation=settings.attn_implementation,
            load_in_4bit=settings.load_in_4bit,
        )

    def measure_drift(self) -> dict[str, Any] | None:
        """Return the KL divergence to the reference model on held-out benign answers; None without a reference."""
        settings, name = self.settings, self.reference_name()
        if name is None or not settings.max_benign or settings.backend == "openai":
            return None
        path = self.folder / "benign_kl.json"
        if not path.exists():
            from course_correction.suites.benign_kl import benign_drift

            logger.info(f"Measuring KL to {name} on benign answers")
            sampler = self.sampler()
            reference = self.load_reference(name)
            write_json(
                path,
                benign_drift(sampler.model, reference, sampler.tokenizer, read_benign_rows("eval")[: settings.max_benign]),
            )
        return json.loads(path.read_text())

    def judge(self, judge: Any) -> None:
        """Write verdicts.jsonl, a row for each path."""
        from course_correction.judges.protocol import JudgedPath
        from course_correction.judges.server import check_calls

        paths: dict[str, list[dict[str, Any]]] = {item["request_id"]: [] for item in self.items}
        for row in read_jsonl(self.folder / "generations.jsonl"):
            if not row.get("too_short"):
                paths[row["request_id"]].append(row)
        names = [name for name, rows in paths.items() if rows]
        # The pattern judge reads the continuation alone; prefills are rendered only for those that read them.
        reads_prefills = self.settings.judge != ["pattern"]

        def judged(rows: list[dict[str, Any]]) -> list[JudgedPath]:
            item = self.by_id[rows[0]["request_id"]]
            return [
                JudgedPath(
                    item["request"],
                    self.prefill_text(item, row["prefill_tokens"]) if reads_prefills else "",
                    row["continuation"],
                )
                for row in rows
            ]

        def begin() -> tuple[Any, None]:
            if reads_prefills:
                check_calls(judge, [path for name in names for path in judged(paths[name])], self.settings.max_judge_calls)
            return lambda unit: self._verdict_rows(judge, paths[names[unit]], judged(paths[names[unit]])), None

        # Where every item is too short there is nothing to judge, and that is a result too.
        path = self.folder / "verdicts.jsonl"
        path.touch()
        run_units(
            path,
            [[name] for name in names],
            lambda rows: bool(rows) and len(rows) == len(paths[rows[0]["request_id"]]),
            begin,
            Ranks.alone(),
            f"judging ({judge.name})",
        )

    def tokenizer(self) -> Any:
        """Return the evaluated model's, without loading the model."""
        settings = self.settings
        if self._sampler is not None:
            return self._sampler.tokenizer
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(
                settings.model_name_or_path, settings.model_revision, chat_template=settings.chat_template
            )
        return self._tokenizer

    def prefill_text(self, item: dict[str, str], k: int, mode: str | None = None) -> str:
        """Return what was put into the model's mouth, as text, in this evaluation's prefill mode or another."""
        if (mode or self.settings.prefill_mode) == "reference":
            return begin_as_reference(item, k, self.settings.seed)
        if item["request_id"] not in self._answer_ids:
            self._answer_ids[item["request_id"]] = encode_answer(self.tokenizer(), item["full_harmful_response"])
        return self.tokenizer().decode(self._answer_ids[item["request_id"]][:k])

    @staticmethod
    def _verdict_rows(judge: Any, rows: list[dict[str, Any]], judged: list[Any]) -> list[dict[str, Any]]:
        return [
            {name: row[name] for name in ("request_id", "prefill_tokens", "path")}
            | {"corrected": verdict.corrected, "reason": verdict.reason}
            | ({"votes": verdict.votes} if verdict.votes else {})
            for row, verdict in zip(rows, judge.judge(judged), strict=True)
        ]


def begin_as_reference(item: dict[str, str], words: int, seed: int) -> str:
    """Return the first words of an opener and the response; the opener is the item's own, drawn once."""
    opener = random.Random(text_digest(str(seed), item["request_id"])).choice(OPENERS)
    return " ".join(f"{opener} {item['full_harmful_response']}".split()[:words])
