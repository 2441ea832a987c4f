"""One evaluation in its folder: sample paths, answer benign prompts, judge, measure. The work behind eval.py."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from course_correction.loading import load_model, load_tokenizer, weights_identity
from course_correction.run_files import UnitFile, UsageError, chunked, library_versions, read_jsonl, text_digest, write_json
from course_correction.settings import announce
from course_correction.sources import normalise_request, read_benign_rows, read_eval_items


class Evaluation:
    """One evaluation in its output folder: sampling, judging, metrics; each stage goes on where it stopped."""

    def __init__(self, settings: Any) -> None:
        """Read the items of eval.py's `EvaluationSettings`; the model is loaded only if something is left to sample."""
        self.settings = settings
        self.folder = Path(settings.output_dir)
        self.items = list(read_eval_items(settings.items))[: settings.max_requests]
        if not self.items:
            raise UsageError(f"{settings.items} holds no item.")
        repeated = [name for name, count in Counter(item["request_id"] for item in self.items).items() if count > 1]
        if repeated:
            raise UsageError(f"{settings.items}: {len(repeated)} request_ids occur twice, the first is {repeated[0]}.")
        self.by_id = {item["request_id"]: item for item in self.items}
        self._loaded: tuple[Any, Any] | None = None

    def model_and_tokenizer(self) -> tuple[Any, Any]:
        """Load on first use."""
        if self._loaded is None:
            settings = self.settings
            # The tokenizer first: it is small, and a missing chat template shows before the weights are loaded.
            tokenizer = load_tokenizer(settings.model_name_or_path, settings.model_revision)
            model = load_model(
                settings.model_name_or_path,
                settings.adapter_name_or_path,
                settings.dtype,
                settings.attn_implementation,
                settings.model_revision,
                settings.load_in_4bit,
            )
            self._loaded = model, tokenizer
        return self._loaded

    def sampling_identity(self) -> dict[str, Any]:
        """Return what decides the sampled rows: other values in the same folder are refused."""
        names = (
            "model_name_or_path model_revision adapter_name_or_path dtype attn_implementation load_in_4bit items "
            "prefill_tokens num_paths max_new_tokens temperature top_p share_prefix benign_max_new_tokens reference_model "
            "seed"
        )
        identity = {name: getattr(self.settings, name) for name in names.split()}
        identity["max_benign"], identity["num_requests"] = self.settings.max_benign, len(self.items)
        identity["items_digest"] = text_digest(*(text for item in self.items for text in item.values()))
        for name in ("model_name_or_path", "adapter_name_or_path", "reference_model"):
            folder = Path(getattr(self.settings, name) or "")
            if getattr(self.settings, name) and folder.is_dir():
                identity[f"{name}_weights"] = weights_identity(folder)
        return identity

    def sample(self) -> None:
        """Write generations.jsonl: a row for each path, or one marked `too_short` for an item shorter than k."""
        from tqdm.auto import tqdm

        settings = self.settings

        def is_complete(rows: list[dict[str, Any]]) -> bool:
            short = sum(row.get("too_short", False) for row in rows)
            return len(rows) - short == (len(settings.prefill_tokens) - short) * settings.num_paths

        file = UnitFile(self.folder / "generations.jsonl", [[item["request_id"]] for item in self.items], is_complete)
        if file.quarantined_bytes:
            announce(f"A torn unit was moved to {file.quarantine} and is done again.")
        if file.units_done == len(self.items):
            return
        # Loaded before the bar is drawn, so that an error stands on a line of its own.
        self.model_and_tokenizer()
        with tqdm(total=len(self.items), desc="sampling", unit="request", mininterval=1) as bar:
            bar.update(file.units_done)
            for item in self.items[file.units_done :]:
                file.append(self.sample_item(item))
                bar.update()

    def sample_item(self, item: dict[str, str]) -> list[dict[str, Any]]:
        """Sample all paths of one item. Rows by k, then path."""
        from course_correction.generation import (
            SamplingSettings,
            continue_forks,
            continue_prefills,
            decode_continuation,
            encode_answer,
            render_prompt,
            shares_prefixes,
        )

        settings = self.settings
        model, tokenizer = self.model_and_tokenizer()
        sampling = SamplingSettings(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)
        prompt = render_prompt(tokenizer, item["request"])
        answer = encode_answer(tokenizer, item["full_harmful_response"])
        lengths = [k for k in sorted(settings.prefill_tokens) if k <= len(answer)]
        forks = [(k, path) for k in lengths for path in range(settings.num_paths)]
        keys = [f"{item['request_id']}\x1f{k}\x1f{path}" for k, path in forks]
        written = []
        if forks and settings.share_prefix and shares_prefixes(model):
            trunk = prompt + answer[: lengths[-1]]
            written = continue_forks(model, tokenizer, trunk, [len(prompt) + k for k, _ in forks], keys, sampling)
        elif forks:
            prefills = [prompt + answer[:k] for k, _ in forks]
            written = continue_prefills(model, tokenizer, prefills, keys, sampling)
        rows = [
            {
                "request_id": item["request_id"],
                "prefill_tokens": k,
                "path": path,
                "continuation": decode_continuation(tokenizer, answer[:k], continuation.token_ids),
                "num_tokens": len(continuation.token_ids),
                "ended": continuation.ended,
            }
            for (k, path), continuation in zip(forks, written, strict=True)
        ]
        short = [k for k in sorted(settings.prefill_tokens) if k > len(answer)]
        return rows + [
            {"request_id": item["request_id"], "prefill_tokens": k, "path": None, "too_short": True} for k in short
        ]

    def answer_benign(self) -> None:
        """Write benign_answers.jsonl: the model's greedy answers to the held-out benign prompts."""
        from tqdm.auto import tqdm

        units = chunked(read_benign_rows("eval")[: self.settings.max_benign], 20)
        file = UnitFile(
            self.folder / "benign_answers.jsonl",
            [[row["request_id"] for row in unit] for unit in units],
            lambda rows: len(rows) == 1,
        )
        if file.units_done == len(units):
            return
        from course_correction.generation import SamplingSettings, continue_prefills, decode_continuation, render_prompt

        model, tokenizer = self.model_and_tokenizer()
        sampling = SamplingSettings(self.settings.benign_max_new_tokens, temperature=0, seed=self.settings.seed)
        for unit in tqdm(units[file.units_done :], desc="benign prompts", unit="batch"):
            prompts = [render_prompt(tokenizer, row["prompt"]) for row in unit]
            answers = continue_prefills(model, tokenizer, prompts, [row["request_id"] for row in unit], sampling)
            file.append(
                {"request_id": row["request_id"], "answer": decode_continuation(tokenizer, [], answer.token_ids)}
                for row, answer in zip(unit, answers, strict=True)
            )

    def measure_drift(self) -> dict[str, Any] | None:
        """Return the KL divergence to the reference model on held-out benign answers; None without a reference."""
        settings = self.settings
        name = settings.reference_model or (settings.model_name_or_path if settings.adapter_name_or_path else None)
        if name is None or not settings.max_benign:
            return None
        path = self.folder / "benign_kl.json"
        if not path.exists():
            from course_correction.drift import benign_drift

            announce(f"Measuring KL to {name} on benign answers")
            model, tokenizer = self.model_and_tokenizer()
            # The revision is the evaluated model's; another repository has others.
            revision = settings.model_revision if name == settings.model_name_or_path else None
            reference = load_model(name, None, settings.dtype, settings.attn_implementation, revision, settings.load_in_4bit)
            write_json(path, benign_drift(model, reference, tokenizer, read_benign_rows("eval")[: settings.max_benign]))
        return json.loads(path.read_text())

    def judge(self) -> str:
        """Write verdicts.jsonl, a row for each path, and return the judge's name."""
        from tqdm.auto import tqdm

        from course_correction.judging import Path as JudgedPath
        from course_correction.judging import make_judge

        judge = make_judge(self.settings.judge, self.settings.judge_model, self.settings.judge_base_url)
        paths: dict[str, list[dict[str, Any]]] = {item["request_id"]: [] for item in self.items}
        for row in read_jsonl(self.folder / "generations.jsonl"):
            if not row.get("too_short"):
                paths[row["request_id"]].append(row)
        judged = {name: rows for name, rows in paths.items() if rows}
        file = UnitFile(
            self.folder / "verdicts.jsonl",
            [[name] for name in judged],
            lambda rows: bool(rows) and len(rows) == len(judged[rows[0]["request_id"]]),
        )
        # Where every item is too short there is nothing to judge, and that is a result too.
        file.path.touch()
        todo = list(judged)[file.units_done :]
        # The pattern judge reads the continuation alone; prefills are rendered only for those that read them.
        tokenizer = None
        if todo and self.settings.judge != "pattern":
            tokenizer = load_tokenizer(self.settings.model_name_or_path, self.settings.model_revision)
        for name in tqdm(todo, desc=f"judging ({judge.name})", unit="request", mininterval=1):
            item, rows = self.by_id[name], judged[name]
            prefills = [_prefill_text(tokenizer, item, row["prefill_tokens"]) for row in rows]
            verdicts = judge.judge(
                [
                    JudgedPath(item["request"], prefill, row["continuation"])
                    for prefill, row in zip(prefills, rows, strict=True)
                ]
            )
            file.append(
                {
                    "request_id": name,
                    "prefill_tokens": row["prefill_tokens"],
                    "path": row["path"],
                    "corrected": verdict.corrected,
                    "reason": verdict.reason,
                }
                for row, verdict in zip(rows, verdicts, strict=True)
            )
        return judge.name

    def measure(self, judge_name: str, seconds: float) -> dict[str, Any]:
        """Compute metrics.json from the finished rows, and the report beside it."""
        from course_correction.judging import judge_refusal
        from course_correction.metrics import paired_difference, rate_with_interval, summarise
        from course_correction.report import write_report

        too_short = Counter(
            row["prefill_tokens"] for row in read_jsonl(self.folder / "generations.jsonl") if row.get("too_short")
        )
        table = read_rates(self.folder, self.by_id, self.settings.prefill_tokens)
        metrics = summarise(table, too_short, self.settings.seed)
        if self.settings.max_benign:
            answers = [row["answer"] for row in read_jsonl(self.folder / "benign_answers.jsonl")]
            metrics["over_refusal"] = rate_with_interval(judge_refusal(answers), self.settings.seed)
            if drift := self.measure_drift():
                metrics["benign_kl"] = drift
        name = self.settings.adapter_name_or_path or self.settings.model_name_or_path
        metrics |= {
            "settings": {k: v for k, v in asdict(self.settings).items() if k not in {"output_dir", "baseline_dir"}},
            "model": self.settings.model_name_or_path,
            "adapter": self.settings.adapter_name_or_path,
            "judge": judge_name,
            "versions": library_versions(),
            "seconds": round(seconds, 1),
        }
        runs, difference = {name: metrics}, None
        if self.settings.baseline_dir:
            baseline = Path(self.settings.baseline_dir)
            before = read_finished(baseline)
            try:
                difference = paired_difference(
                    table, read_rates(baseline, self.by_id, self.settings.prefill_tokens), self.settings.seed
                )
            except ValueError as error:
                raise UsageError(f"{baseline}: {error}") from None
            metrics["difference_to_baseline"] = difference
            runs = {"before": before, "after": metrics}
        write_json(self.folder / "metrics.json", metrics)
        write_report(self.folder, runs, difference)
        return metrics


def _prefill_text(tokenizer: Any, item: dict[str, str], prefill_tokens: int) -> str:
    if tokenizer is None:
        return ""
    from course_correction.generation import encode_answer

    return tokenizer.decode(encode_answer(tokenizer, item["full_harmful_response"])[:prefill_tokens])


def read_finished(folder: Path) -> dict[str, Any]:
    """Return the metrics.json of a finished evaluation.

    Raises:
        UsageError: If there is none.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise UsageError(f"{folder} holds no finished evaluation (no metrics.json). Run eval.py into it first.")
    return json.loads(path.read_text())


def read_rates(folder: Path, by_id: dict[str, dict[str, str]], prefill_tokens: list[int]) -> Any:
    """Count the verdicts in `folder` that belong to the given items into Corr(x, k)."""
    from course_correction.metrics import PathVerdict, request_rates

    path = folder / "verdicts.jsonl"
    if not path.is_file():
        raise UsageError(f"{folder} holds no verdicts.jsonl. Run eval.py into it first.")
    verdicts = [
        PathVerdict(
            normalise_request(by_id[row["request_id"]]["request"]),
            row["request_id"],
            row["prefill_tokens"],
            row["corrected"],
        )
        for row in read_jsonl(path)
        if row["request_id"] in by_id
    ]
    return request_rates(verdicts, prefill_tokens)
