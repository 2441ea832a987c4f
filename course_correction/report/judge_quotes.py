"""What a report says of its judges: how far they agree with labels, on the family of the model under evaluation."""

from course_correction.report.schema import Estimate, FamilyAgreement, JudgeAgreement, Metrics


def judge_sentences(metrics: Metrics) -> str:
    """Return sentences on the judge of corrections and on the judge of refusals."""
    agreement = metrics.get("judge_agreement")
    sentences = [f"Judge of corrections: `{metrics['judge']}`, {_on_hard_rows(agreement)}."]
    if agreement:
        sentences.append(f"{_on_family(agreement['family'], agreement['on_family'])}.")
    if refusals := metrics.get("refusal_agreement"):
        on_family = _on_family(refusals["family"], refusals["on_family"])
        sentences.append(f"Judge of refusals: `{refusals['judge']}`. {on_family}.")
    return " ".join(sentences)


def _on_hard_rows(agreement: JudgeAgreement | None) -> str:
    if not agreement or None in (agreement["precision"]["value"], agreement["sensitivity"]["value"]):
        return "not measured on labels"
    precision, recall = _measure(agreement["precision"]), _measure(agreement["sensitivity"])
    return f"precision {precision}, recall {recall} on {agreement['rows']} labelled, hard rows (docs/evaluation.md)"


def _on_family(family: str | None, agreement: FamilyAgreement | None) -> str:
    if family is None:
        return "Its agreement with labels is not known for this model, whose name tells no family (--model_family)"
    if agreement is None or agreement["kappa"]["value"] is None:
        return f"It was not measured on texts of the family {family}"
    kappa = _measure(agreement["kappa"])
    return f"On {agreement['rows']} texts of the family {family}: Cohen's κ {kappa} ({agreement['source']})"


def _measure(entry: Estimate) -> str:
    low, high = entry.get("ci95") or (float("nan"), float("nan"))
    return f"{entry['value']:.2f} [{low:.2f}, {high:.2f}]"
