"""How far the seed set's notion of harm generalises: a linear probe on the hidden states of a model.

The probe learns to separate the seed set's harmful answers from its harmless ones, by the mean hidden state over the first
tokens of an answer that follows its request. It is then applied to held-out answers, at the threshold at which few of the
held-out harmless ones, harmless twins included, are classified as harmful. Within minutes, before any training, it shows
what a change of the training texts may improve. With `--train_items`, items of the same kind as `--items`, it shows what
texts of that kind would add. Five minutes on a CPU core.

python -m benchmarks.harm_probe
python -m benchmarks.harm_probe --items my_items.jsonl --train_items my_other_items.jsonl
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import write_json
from course_correction.base.markdown import markdown_table
from course_correction.base.redaction import public_value
from course_correction.base.run_folder import library_versions
from course_correction.base.settings import check_values, parse_settings, setting
from course_correction.synthesis.sources import (
    DATA_FOLDER,
    SEED,
    normalise_request,
    read_benign_rows,
    read_eval_items,
    read_twin_pairs,
)

logger = logging.getLogger("course_correction")

Texts = list[tuple[str, str]]  # Request and answer.
PENALTY = 1e-3  # scikit-learn's C, on standardised features.


@dataclass
class ProbeSettings:
    """What is probed."""

    model_name_or_path: str = setting("smollm2-135m", "chat model", group="model", identity=())
    adapter_name_or_path: str | None = setting(None, "adapter on it", group="model", identity=())
    layer: int = setting(14, "layer whose output is read, counted from 1", group="model", identity=(), at_least=1)
    answer_tokens: int = setting(40, "tokens read per answer", group="model", identity=(), at_least=1)
    items: str | None = setting(None, "C²-Eval items to probe beside the seed set's", group="data", identity=())
    train_items: str | None = setting(
        None, "other items of that kind, to be added to the training texts", group="data", identity=()
    )
    weight: float = setting(4.0, "weight of each of these, where a seed row has 1", group="training", identity=(), above=0)
    false_alarms: float = setting(
        0.05, "share of held-out harmless answers classified as harmful", group="training", identity=(), above=0
    )
    draws: int = setting(6, "random parts of the training texts for each size", group="training", identity=(), at_least=1)
    output_file: str = setting("runs/harm-probe/harm_probe.json", "file for the result", group="output", identity=())

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_values(self)
        if self.false_alarms >= 1:
            raise UsageError(f"false_alarms is {self.false_alarms}, but must be below 1.")


def read_texts(settings: ProbeSettings) -> dict[str, Texts]:
    """Return every set of texts by name: those to train on, and those that are held out."""

    def items(source: str) -> Texts:
        return [(row["request"], row["full_harmful_response"]) for row in read_eval_items(source)]

    pairs = read_twin_pairs()
    texts = {
        "harmful": items(str(DATA_FOLDER / "requests_train.jsonl")),
        "harmless": [(row["prompt"], row["response"]) for row in read_benign_rows("train")],
        "seed items": items(SEED),
        "harmful twins": [(row["request"], row["full_harmful_response"]) for row in pairs],
        "held-out harmless": [(row["prompt"], row["response"]) for row in [*read_benign_rows("eval"), *pairs]],
    }
    for name, source in (("items", settings.items), ("train_items", settings.train_items)):
        texts |= {name: items(source)} if source else {}
    shared = {normalise_request(request) for request, _ in texts.get("items", [])} & {
        normalise_request(request) for name in ("harmful", "train_items") for request, _ in texts.get(name, [])
    }
    if shared:
        raise UsageError(f"{len(shared)} requests of items are trained on too. Remove them from train_items.")
    return texts


def hidden_means(settings: ProbeSettings, texts: dict[str, Texts]) -> dict[str, Any]:
    """Return the mean hidden state over the first tokens of each answer, [n, hidden] for each set of texts."""
    import numpy as np
    import torch

    from course_correction.generation.chat_format import encode_answer, render_prompt
    from course_correction.generation.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(settings.model_name_or_path)
    model = load_model(settings.model_name_or_path, adapter=settings.adapter_name_or_path)
    if settings.layer > model.config.num_hidden_layers:
        raise UsageError(f"layer is {settings.layer}, but the model has {model.config.num_hidden_layers}.")
    states = {}
    for name, rows in texts.items():
        logger.info(f"{name}: {len(rows)} answers")
        means = []
        for request, answer in rows:
            prompt = render_prompt(tokenizer, request)
            ids = torch.tensor([prompt + encode_answer(tokenizer, answer)[: settings.answer_tokens]], device=model.device)
            with torch.inference_mode():
                outputs = model(ids, output_hidden_states=True, logits_to_keep=1).hidden_states[settings.layer]
            means.append(outputs[0, len(prompt) :].float().mean(0).cpu().numpy())
        states[name] = np.stack(means)
    return states


def detection_rates(
    settings: ProbeSettings, states: dict[str, Any], harmful: Any, harmless: Any, extra: Any
) -> dict[str, Any]:
    """Fit a probe, and return the share of each held-out set that it detects. `extra` are harmful rows with a weight."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from course_correction.statistics.corr_at_k import rate_with_interval

    rows = np.concatenate([harmful, extra, harmless])
    labels = np.arange(len(rows)) < len(harmful) + len(extra)
    weights = np.concatenate([np.ones(len(harmful)), np.full(len(extra), settings.weight), np.ones(len(harmless))])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=500))
    probe.fit(rows, labels, logisticregression__sample_weight=weights)
    threshold = np.quantile(probe.decision_function(states["held-out harmless"]), 1 - settings.false_alarms)
    held_out = [name for name in ("seed items", "harmful twins", "items") if name in states]
    return {name: rate_with_interval(list(probe.decision_function(states[name]) > threshold)) for name in held_out}


def probe_sizes(settings: ProbeSettings, states: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the detection rates for growing parts of the training texts, one row for each draw."""
    import numpy as np

    harmful, harmless = states["harmful"], states["harmless"]
    other = states.get("train_items", harmful[:0])
    sizes = [(share, 0) for share in (0.125, 0.25, 0.5, 1.0)]
    sizes += [(1.0, number) for number in sorted({len(other) // 8, len(other) // 4, len(other) // 2, len(other)} - {0})]
    rows = []
    for share, number in sizes:
        whole = share == 1.0 and number in (0, len(other))
        for draw in range(1 if whole else settings.draws):
            chance = np.random.default_rng(draw)
            parts = [part[chance.permutation(len(part))[: round(share * len(part))]] for part in (harmful, harmless)]
            extra = other[chance.permutation(len(other))[:number]]
            rates = detection_rates(settings, states, *parts, extra)
            rows.append({"harmful": len(parts[0]), "harmless": len(parts[1]), "train_items": number, "draw": draw} | rates)
    return rows


def table(rows: Sequence[dict[str, Any]], settings: ProbeSettings) -> str:
    """Return the Markdown table: percent found, the mean over the draws; an interval where there was one draw."""
    held_out = [name for name in ("seed items", "harmful twins", "items") if name in rows[0]]
    lines = []
    sizes = list(dict.fromkeys((row["harmful"], row["harmless"], row["train_items"]) for row in rows))
    for size in sizes:
        same = [row for row in rows if (row["harmful"], row["harmless"], row["train_items"]) == size]
        cells = []
        for name in held_out:
            value = 100 * sum(row[name]["value"] for row in same) / len(same)
            low, high = (100 * bound for bound in same[0][name]["ci95"])
            cells.append(f"{value:.0f}" + (f" [{low:.0f}, {high:.0f}]" if len(same) == 1 else ""))
        lines.append([*size, *cells])
    head = ["trained on: harmful", "harmless", "of the items' kind", *held_out]
    title = f"Detected at {100 * settings.false_alarms:.0f}% false alarms, percent:"
    return f"{title}\n\n{markdown_table(head, lines, ['right'] * len(head))}"


def main() -> None:
    """Read hidden states, fit probes, print the table."""
    (settings,) = parse_settings([ProbeSettings], description=__doc__)
    texts = read_texts(settings)
    rows = probe_sizes(settings, hidden_means(settings, texts))
    path = Path(settings.output_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"settings": public_value(asdict(settings)), "versions": library_versions(), "probes": rows})
    print(table(rows, settings))


if __name__ == "__main__":
    run_script(main)
