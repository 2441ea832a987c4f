"""Laws of the protocol of judges."""

from course_correction.judges.protocol import JudgedPath, ScriptedJudge


def test_a_scripted_judge_says_what_it_was_told():
    paths = [JudgedPath("", "", text) for text in ("a", "b", "c")]
    judge = ScriptedJudge([True, None, False, True])
    assert [verdict.corrected for verdict in judge.judge(paths)] == [True, None, False]
    assert [verdict.corrected for verdict in judge.judge(paths[:1])] == [True]
    by_function = ScriptedJudge(lambda path: path.continuation == "b")
    assert [verdict.corrected for verdict in by_function.judge(paths)] == [False, True, False]
