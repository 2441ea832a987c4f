"""The settings of judging, and the choice of judges."""

from dataclasses import dataclass, field

from course_correction.base.errors import UsageError
from course_correction.judges.protocol import Judge


@dataclass
class JudgeSettings:
    """Who judges. Settings of eval.py."""

    judge: list[str] = field(
        default_factory=lambda: ["pattern"],
        metadata={"help": "pattern, openai, transformers or classifier; several vote"},
    )
    judge_model: list[str] = field(
        default_factory=list, metadata={"help": "model of each judge that has one, in their order; gpt-4o for openai"}
    )
    judge_revision: str | None = field(default=None, metadata={"help": "revision of judge: transformers or classifier"})
    judge_threshold: float = field(
        default=0.5, metadata={"help": "score from which on a judge that gives scores calls a path corrected"}
    )
    judge_by_probability: bool = field(
        default=False, metadata={"help": "judge: openai reads P(yes) off log-probabilities, against judge_threshold"}
    )
    judge_label: str | None = field(default=None, metadata={"help": "the classifier's label that means corrected"})
    judge_base_url: str | None = field(default=None, metadata={"help": "an OpenAI-compatible server for judge: openai"})
    max_judge_calls: int | None = field(
        default=None, metadata={"help": "refuse to start C²-Eval's or a suite's judging with more calls to a server"}
    )
    max_unscored: float = field(
        default=0.05, metadata={"help": "larger shares of unscored paths fail the run, with everything saved"}
    )

    def check_judges(self) -> None:
        """Refuse what no judge can be made of."""
        for name in self.judge:
            if name not in JUDGES:
                raise UsageError(f"judge is {name!r}, but takes {', '.join(JUDGES)}.")
        if not self.judge or len(set(self.judge)) < len(self.judge):
            raise UsageError(f"judge is {self.judge}; name at least one, each once.")
        with_model = [name for name in self.judge if name != "pattern"]
        if len(self.judge_model) > len(with_model):
            raise UsageError(f"judge_model names {len(self.judge_model)} models for {len(with_model)} judges that have one.")
        if "transformers" in with_model[len(self.judge_model) :]:
            raise UsageError("judge: transformers needs judge_model, a chat model.")
        if not 0 <= self.judge_threshold <= 1 or not 0 <= self.max_unscored <= 1:
            raise UsageError("judge_threshold and max_unscored are shares in [0, 1].")


JUDGES = ("pattern", "openai", "transformers", "classifier")


def make_judge(settings: JudgeSettings) -> Judge:
    """Return the judge that the settings name: one, or a majority of several.

    Raises:
        UsageError: If a model, a package or a key is missing.
    """
    from course_correction.judges.models import ClassifierJudge, MajorityJudge, TransformersJudge
    from course_correction.judges.pattern import PatternJudge
    from course_correction.judges.server import OpenAIJudge

    models = iter(settings.judge_model)
    judges: list[Judge] = []
    for name in settings.judge:
        if name == "pattern":
            judges.append(PatternJudge())
            continue
        model, revision, threshold = next(models, None), settings.judge_revision, settings.judge_threshold
        if name == "openai":
            share = threshold if settings.judge_by_probability else None
            judges.append(OpenAIJudge(model or "gpt-4o", settings.judge_base_url, share))
        elif name == "transformers":
            judges.append(TransformersJudge(model, revision, threshold))
        else:
            options = {"model": model} if model else {}
            judges.append(ClassifierJudge(revision=revision, threshold=threshold, label=settings.judge_label, **options))
    return judges[0] if len(judges) == 1 else MajorityJudge(judges)
