"""Teachers: who writes the safe response and the four corrections of a ranked group."""

from collections.abc import Callable
from dataclasses import dataclass

from course_correction.base.errors import UsageError
from course_correction.base.files import chunked
from course_correction.base.redaction import public_name
from course_correction.generation.chat_format import encode_answer
from course_correction.generation.choice import load_sampler
from course_correction.generation.protocol import Prefill, Sampler
from course_correction.synthesis.ranked_groups import (
    GROUP_SIZE,
    CorrectionDraft,
    DroppedGroup,
    RankedGroup,
    build_ranked_group,
    draft_corrections,
)
from course_correction.synthesis.settings import WRITTEN, SynthesisSettings
from course_correction.synthesis.sources import SourcePair
from course_correction.synthesis.triggers import join_trigger


@dataclass(frozen=True)
class Teacher:
    """Writes ranked groups.

    Attributes:
        name: Stands in the column `teacher`.
        write_groups: Returns one row per source pair, in the order of the pairs.
        sampler: Samples the texts, for the progress bar; None if the texts are already written.
    """

    name: str
    write_groups: Callable[[list[SourcePair]], list[RankedGroup | DroppedGroup]]
    sampler: Sampler | None = None


def choose_teacher(settings: SynthesisSettings) -> Teacher:
    """Return the teacher that the settings name; a chat model is loaded."""
    return written_teacher(settings) if settings.teacher == WRITTEN else model_teacher(settings)


def written_teacher(settings: SynthesisSettings) -> Teacher:
    """Return the teacher that copies the safe responses and corrections of the seed set."""

    def write_groups(pairs: list[SourcePair]) -> list[RankedGroup | DroppedGroup]:
        return [_written_group(pair, _draft(pair, settings)) for pair in pairs]

    return Teacher(WRITTEN, write_groups)


def _written_group(pair: SourcePair, draft: CorrectionDraft) -> RankedGroup:
    if not pair.safe_response or not pair.correction:
        raise UsageError(
            f"Row {pair.request_id} of the seed set has no safe response or no correction. Add both, or remove the row."
        )
    continuations = [" " + pair.correction.strip()] * len(draft.triggers)
    return build_ranked_group(pair, *draft, pair.safe_response, continuations, WRITTEN)


def model_teacher(settings: SynthesisSettings) -> Teacher:
    """Load a chat model, or connect to its server, and return it as teacher.

    It answers the request for the safe response, and continues after each initial harmful response and its trigger.
    """
    from course_correction.generation.decoding import SamplingSettings

    loading = {
        "dtype": settings.teacher_dtype,
        "attn_implementation": settings.teacher_attn_implementation,
        "load_in_4bit": settings.teacher_load_in_4bit,
    }
    sampler = load_sampler(settings.teacher_model, settings.teacher_revision, loading, settings)
    sampling = SamplingSettings(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)
    name = public_name(settings.server_model or settings.teacher_model)

    def prefills_of(pair: SourcePair, draft: CorrectionDraft) -> list[Prefill]:
        corrections = zip(draft.initial_responses, draft.triggers, strict=True)
        texts = ["", *(join_trigger(response, trigger)[0] for response, trigger in corrections)]
        return [
            Prefill(pair.request, tuple(encode_answer(sampler.tokenizer, text)), f"{pair.request_id}\x1f{rank}")
            for rank, text in enumerate(texts)
        ]

    def write_groups(pairs: list[SourcePair]) -> list[RankedGroup | DroppedGroup]:
        drafts = [_draft(pair, settings) for pair in pairs]
        prefills = [prefill for pair, draft in zip(pairs, drafts, strict=True) for prefill in prefills_of(pair, draft)]
        texts = [completion.text for completion in sampler.sample(prefills, sampling)]
        return [
            _group_or_reason(pair, draft, safe_response, continuations, name)
            for pair, draft, (safe_response, *continuations) in zip(
                pairs, drafts, chunked(texts, GROUP_SIZE - 1), strict=True
            )
        ]

    return Teacher(name, write_groups, sampler)


def _draft(pair: SourcePair, settings: SynthesisSettings) -> CorrectionDraft:
    return draft_corrections(pair, settings.seed, settings.opener_rate, settings.mid_sentence_rate)


def _group_or_reason(
    pair: SourcePair, draft: CorrectionDraft, safe_response: str, continuations: list[str], teacher: str
) -> RankedGroup | DroppedGroup:
    if not all(text.strip() for text in [safe_response, *continuations]):
        return {"request_id": pair.request_id, "dropped": "empty_continuation"}
    group = build_ranked_group(pair, *draft, safe_response, continuations, teacher)
    if len(set(group["responses"])) < GROUP_SIZE:
        return {"request_id": pair.request_id, "dropped": "identical_responses"}
    return group
