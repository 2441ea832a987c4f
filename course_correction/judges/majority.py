"""Several judges that vote. Knows nothing of how each of them judges."""

from collections.abc import Sequence

from course_correction.judges.protocol import Judge, JudgedPath, Verdict
from course_correction.statistics.judge_agreement import majority


class MajorityJudge:
    """Several judges that each judge every path; the verdict is that of more than half of those with one."""

    def __init__(self, judges: Sequence[Judge]) -> None:
        """Take the judges."""
        self.judges = list(judges)
        self.name = "majority of " + ", ".join(judge.name for judge in judges)

    def judge(self, paths: Sequence[JudgedPath]) -> list[Verdict]:
        """Judge the paths; `votes` of each verdict holds every judge's own."""
        by_judge = [judge.judge(paths) for judge in self.judges]
        verdicts = []
        for row in zip(*by_judge, strict=True):
            votes = {judge.name: verdict.corrected for judge, verdict in zip(self.judges, row, strict=True)}
            decided = majority(list(votes.values()))
            reason = f"{sum(vote is True for vote in votes.values())} of {len(votes)}"
            verdicts.append(Verdict(decided, reason, votes))
        return verdicts
