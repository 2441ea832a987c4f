"""Fit the weights of the pattern judge, and write pattern_judge.json. Takes a minute on 2 CPU cores.

The labelled set that judges are measured on (judge_calibration.jsonl) is never read here.

python -m benchmarks.fit_pattern_judge
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_correction.base.console import run_script
from course_correction.base.files import read_jsonl
from course_correction.base.settings import parse_settings, setting
from course_correction.judges.pattern import (
    CORRECTS,
    REFUSES,
    UNIT,
    WEIGHTS_FILE,
    PatternWeights,
    judge_refusal,
    text_features,
)
from course_correction.synthesis.sources import DATA_FOLDER
from course_correction.synthesis.triggers import TRIGGERS, join_texts

# Texts written to train judges weigh most; those cut out of the seed set are many and easy. Chosen on the development
# split of the labelled set, and by the share of plain text that is called a correction.
WRITTEN, SAMPLED, CUT_OUT_GOOD, CUT_OUT_BAD, CUT_OUT_ANSWER = 3.0, 2.0, 0.5, 1.0, 2.0
REGULARISATION = 30.0  # scikit-learn's C.
PATH_WORDS, ANSWER_WORDS = 28, 48

Example = tuple[str, bool, float]  # Text, label, weight.


@dataclass
class FitSettings:
    """How many weights to keep, and where."""

    max_features: int = setting(
        60_000, "number of patterns to keep, those with the largest weights", group="training", identity=(), at_least=1
    )
    seed: int = setting(0, "seed of the windows cut out of long texts", group="training", identity=())
    output_file: str = setting(str(WEIGHTS_FILE), "file to write the weights to", group="output", identity=())


def read_data(name: str) -> list[dict[str, Any]]:
    """Return the rows of a file in data/."""
    return list(read_jsonl(DATA_FOLDER / f"{name}.jsonl"))


def windows(random_source: random.Random, text: str, size: int, count: int) -> list[str]:
    """Return `count` windows of `size` words of a text."""
    words = text.split()
    starts = [random_source.randrange(max(1, len(words) - size)) for _ in range(count)]
    return [" ".join(words[start : start + size]) for start in starts]


def correction_examples(seed: int) -> list[Example]:
    """Return texts that correct themselves, and texts that do not."""
    random_source = random.Random(seed)
    # Rows of other families than SmolLM2 are left to the encoder judge: with them word patterns lose precision on the
    # labelled set (0.97 to 0.95) and see few more of the refusals that people labelled.
    examples = [
        (row["continuation"], row["corrected"], SAMPLED if row["kind"].startswith(("sampled", "assumed")) else WRITTEN)
        for row in read_data("judge_train")
        if "family" not in row
    ]
    for row in read_data("requests_train"):
        harmful, correction = row["full_harmful_response"], row["correction"]
        triggered = join_texts(random_source.choice(TRIGGERS), correction)
        start = " ".join(harmful.split()[20:28])
        positives = [correction, row["safe_response"], triggered, f"{start}. {correction}", f"{start}... {triggered}"]
        examples += [(" ".join(text.split()[:PATH_WORDS]), True, CUT_OUT_GOOD) for text in positives]
        examples += [(" ".join(triggered.split()[:12]), True, CUT_OUT_GOOD)]
        negatives = windows(random_source, harmful, PATH_WORDS, 5)
        # A path may end after a few words, which alone is no sign of a correction.
        negatives += windows(random_source, harmful, random_source.randint(2, 9), 2)
        examples += [(text, False, CUT_OUT_BAD) for text in negatives]
    return examples


def refusal_examples(seed: int) -> list[Example]:
    """Return answers that refuse and answers that help."""
    random_source = random.Random(seed)
    examples = [
        (" ".join(row["answer"].split()[:ANSWER_WORDS]), row["refuses"], SAMPLED if row["sampled"] else WRITTEN)
        for row in read_data("refusal_train")
    ]
    for row in read_data("requests_train"):
        texts = (row["safe_response"], join_texts(random_source.choice(TRIGGERS), row["correction"]))
        examples += [(" ".join(text.split()[:ANSWER_WORDS]), True, CUT_OUT_ANSWER) for text in texts]
    for row in read_data("benign_train"):
        answers = [" ".join(row["response"].split()[:ANSWER_WORDS]), *windows(random_source, row["response"], 24, 1)]
        examples += [(text, False, CUT_OUT_ANSWER) for text in answers]
    return examples


def fit(examples: Sequence[Example], max_features: int) -> PatternWeights:
    """Return the weights of a logistic regression."""
    import numpy as np
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression

    by_text = [text_features(text) for text, _, _ in examples]
    seen = Counter(feature for features in by_text for feature in features)
    # Scaled by all patterns of a text, known or not, as `probability` does.
    rows = [{name: 1 / max(1, len(features)) ** 0.5 for name in features if seen[name] > 1} for features in by_text]
    vectorizer = DictVectorizer()
    table = vectorizer.fit_transform(rows).tocsr()
    labels, weights = np.array([label for _, label, _ in examples]), np.array([weight for *_, weight in examples])
    model = LogisticRegression(C=REGULARISATION, max_iter=5000).fit(table, labels, sample_weight=weights)
    values = model.coef_[0]
    kept = sorted(np.argsort(-np.abs(values), kind="stable")[:max_features])
    names = vectorizer.get_feature_names_out()
    rounded = {str(names[index]): round(float(values[index]) * UNIT) for index in kept}
    return {
        "bias": round(float(model.intercept_[0]) * UNIT),
        "weights": {name: weight for name, weight in rounded.items() if weight},
    }


def cross_validate_refusals(examples: Sequence[Example], folds: int = 4) -> str:
    """Return a line on how weights that were fitted without a sampled answer classify it."""
    rows = [row for row in read_data("refusal_train") if row["sampled"]]
    classified = []
    for fold in range(folds):
        held_out = {row["answer"] for row in rows[fold::folds]}
        weights = fit([example for example in examples if example[0] not in held_out], FitSettings.max_features)
        classified += [(row["refuses"], judge_refusal([row["answer"]], weights)[0]) for row in rows[fold::folds]]
    hits, alarms = (sum(verdict for refuses, verdict in classified if refuses == label) for label in (True, False))
    refusing = sum(row["refuses"] for row in rows)
    return (
        f"{REFUSES}, cross-validated: {hits} of {refusing} sampled refusals detected, "
        f"{alarms} of {len(rows) - refusing} other answers misclassified as refusals"
    )


def main() -> None:
    """Fit both questions, write the file, and print how well refusals are detected."""
    (settings,) = parse_settings([FitSettings], description=__doc__)
    examples = {CORRECTS: correction_examples(settings.seed), REFUSES: refusal_examples(settings.seed)}
    fitted = {name: fit(texts, settings.max_features) for name, texts in examples.items()}
    Path(settings.output_file).write_text(json.dumps(fitted, ensure_ascii=False, separators=(",", ":")) + "\n")
    for name, texts in examples.items():
        print(f"{name}: {len(texts)} texts, {len(fitted[name]['weights'])} patterns")
    print(cross_validate_refusals(examples[REFUSES]))


if __name__ == "__main__":
    run_script(main)
