"""Laws of the judge on a server: lenient reading, retries, one-line errors, and no question paid for twice."""

import math
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from course_correction.base.errors import UsageError
from course_correction.judges.majority import MajorityJudge
from course_correction.judges.pattern import PatternJudge
from course_correction.judges.protocol import Verdict
from course_correction.judges.server import OpenAIJudge, check_calls
from tests.support.judge import Reply, chat_server, make_openai_judge, sample_paths
from tests.support.judge import plain_environment as plain_environment


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("yes", Verdict(True, "yes")),
        ("Yes.", Verdict(True, "yes")),
        (" YES", Verdict(True, "yes")),
        ("**Yes**, because", Verdict(True, "yes")),
        ("no", Verdict(False, "no")),
        ("No, it goes", Verdict(False, "no")),
        ("The continuation seems to", Verdict(None, "unparsable")),
        ("Nobody can say", Verdict(None, "unparsable")),
        ("", Verdict(None, "unparsable")),
    ],
)
def test_answers_are_read_leniently_and_essays_are_unscored(answer, verdict):
    with chat_server(lambda number, request: (200, answer)) as (url, requests):
        assert make_openai_judge(url).judge(sample_paths("wait")) == [verdict]
        assert (requests[0]["temperature"], requests[0]["seed"], requests[0]["model"]) == (0, 42, "m")
        assert requests[0]["max_tokens"] <= 8


def test_an_answer_of_a_strange_shape_is_unscored():
    with chat_server(lambda number, request: (200, {"choices": []})) as (url, _):
        assert make_openai_judge(url).judge(sample_paths("wait")) == [Verdict(None, "unparsable")]


def test_results_come_in_the_order_of_the_paths():
    def reply(number: int, request: dict[str, Any]) -> Reply:
        time.sleep(0.02 * (number % 3))
        return 200, "yes" if "odd" in request["messages"][1]["content"] else "no"

    with chat_server(reply) as (url, _):
        verdicts = make_openai_judge(url).judge(sample_paths(*["even", "odd"] * 10))
    assert [verdict.corrected for verdict in verdicts] == [False, True] * 10


def test_an_empty_continuation_is_unscored_without_a_call():
    with chat_server(lambda number, request: (200, "yes")) as (url, requests):
        verdicts = make_openai_judge(url).judge(sample_paths("", "wait", " \n"))
        assert verdicts == [Verdict(None, "empty"), Verdict(True, "yes"), Verdict(None, "empty")]
        assert len(requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_call_that_fails_twice_is_retried(status):
    with chat_server(lambda number, request: (status, {}) if number < 3 else (200, "no")) as (url, requests):
        assert make_openai_judge(url).judge(sample_paths("wait")) == [Verdict(False, "no")]
        assert len(requests) == 3


def test_a_path_whose_call_keeps_failing_is_unscored_and_the_others_are_judged():
    def reply(number: int, request: dict[str, Any]) -> Reply:
        return (500, {}) if "broken" in request["messages"][1]["content"] else (200, "yes")

    with chat_server(reply) as (url, requests):
        verdicts = make_openai_judge(url).judge(sample_paths("wait", "broken", "stop"))
        assert verdicts == [Verdict(True, "yes"), Verdict(None, "http 500"), Verdict(True, "yes")]
        assert len(requests) == 5


def test_a_bad_request_is_unscored_and_not_retried():
    with chat_server(lambda number, request: (400, {"error": {"message": "no"}})) as (url, requests):
        assert make_openai_judge(url).judge(sample_paths("wait")) == [Verdict(None, "http 400")]
        assert len(requests) == 1


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (401, "invalid_api_key", "OPENAI_API_KEY"),
        (403, None, "OPENAI_API_KEY"),
        (404, "model_not_found", "'m'"),
        (429, "insufficient_quota", "insufficient_quota"),
        (400, "unsupported_parameter", "unsupported_parameter"),
    ],
)
def test_an_error_that_the_user_must_fix_is_one_line_after_one_call(status, code, hint):
    error = {"error": {"message": "wait and more", "code": code}}
    with chat_server(lambda number, request: (status, error)) as (url, requests):
        with pytest.raises(UsageError) as raised:
            make_openai_judge(url).judge(sample_paths("wait"))
        assert hint in str(raised.value)
        assert "\n" not in str(raised.value)
        assert "wait" not in str(raised.value)
        assert len(requests) == 1


def test_a_missing_server_is_reported_within_seconds():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(UsageError, match="cannot be reached"):
        OpenAIJudge("m", f"http://127.0.0.1:{port}/v1").judge(sample_paths("wait"))
    assert time.monotonic() - start < 10


def test_a_server_lost_after_the_first_answer_leaves_paths_unscored():
    with chat_server(lambda number, request: (200, "yes")) as (url, _):
        judge = make_openai_judge(url)
        assert judge.judge(sample_paths("wait"))[0].corrected is True
    # Earlier answers are cached; there are no new ones.
    assert judge.judge(sample_paths("wait", "stop")) == [Verdict(True, "yes"), Verdict(None, "no connection")]


def test_the_key_comes_from_the_environment_only(monkeypatch):
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        OpenAIJudge()
    with chat_server(lambda number, request: (200, "yes")) as (url, requests):
        make_openai_judge(url).judge(sample_paths("wait"))
        monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
        make_openai_judge(url).judge(sample_paths("stop"))
    assert "from-the-environment" not in requests[0]["authorization"]
    assert requests[1]["authorization"] == "Bearer from-the-environment"


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UsageError, match=r"pip install course-correction\[openai\]"):
        OpenAIJudge(base_url="http://127.0.0.1:1/v1")


def test_judges_print_nothing(capfd):
    PatternJudge().judge(sample_paths("wait", ""))
    with chat_server(lambda number, request: (500, {})) as (url, _):
        make_openai_judge(url).judge(sample_paths("wait"))
    assert capfd.readouterr() == ("", "")


def log_probabilities(**shares: float) -> Callable[[int, dict[str, Any]], Reply]:
    top = [{"token": word, "logprob": math.log(share), "bytes": None} for word, share in shares.items()]
    message = {"role": "assistant", "content": next(iter(shares))}
    choice = {"index": 0, "finish_reason": "length", "message": message}
    choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return lambda number, request: (200, {"id": "1", "object": "c", "created": 0, "model": "m", "choices": [choice]})


def test_the_probability_of_yes_is_read_from_log_probabilities_and_cached():
    shares = {"no": 0.5, " Yes": 0.2, "YES": 0.1, "perhaps": 0.2}
    with chat_server(log_probabilities(**shares)) as (url, requests):
        for threshold, corrected in ((0.3, True), (0.4, False)):
            judge = make_openai_judge(url, threshold=threshold)
            assert judge.judge(sample_paths("wait")) == [Verdict(corrected, "score 0.38")]
        assert judge.scores(sample_paths("wait", "")) == [pytest.approx(0.375), None]
        assert len(requests) == 1 and requests[0]["logprobs"] is True and requests[0]["max_tokens"] == 1
        # Words and probabilities are cached separately.
        assert make_openai_judge(url).judge(sample_paths("wait")) == [Verdict(False, "no")]
        assert judge.name == "openai/m by probability"


def test_an_unlikely_yes_and_no_are_unscored():
    with chat_server(log_probabilities(Well=0.95, no=0.05)) as (url, _):
        assert make_openai_judge(url, threshold=0.5).judge(sample_paths("wait")) == [Verdict(None, "unparsable")]


def test_a_server_without_log_probabilities_is_named():
    with chat_server(lambda number, request: (200, "yes")) as (url, _), pytest.raises(UsageError) as raised:
        make_openai_judge(url, threshold=0.5).judge(sample_paths("wait"))
    assert "returns no log-probabilities" in str(raised.value)


def test_a_question_is_asked_once_and_no_text_is_cached(monkeypatch, tmp_path):
    with chat_server(lambda number, request: (200, "yes" if number == 1 else "perhaps")) as (url, requests):
        assert make_openai_judge(url).judge(sample_paths("wait", "stop"))[0] == Verdict(True, "yes")
        assert len(requests) == 2
        # A question without an answer is asked again.
        judge = make_openai_judge(url)
        assert judge.calls_needed(sample_paths("wait", "stop", ""))[0] == 1
        assert judge.judge(sample_paths("wait", "stop")) == [Verdict(True, "yes"), Verdict(None, "unparsable")]
        assert len(requests) == 3
        other = OpenAIJudge("another", url)
        assert other.calls_needed(sample_paths("wait"))[0] == 1
    kept = "".join(file.read_text() for file in (tmp_path / "cache").rglob("*.jsonl"))
    assert "yes" in kept and "wait" not in kept and "queue" not in kept


def test_more_calls_than_allowed_are_refused_before_the_first(caplog):
    with chat_server(lambda number, request: (200, "yes")) as (url, requests):
        judge = make_openai_judge(url)
        paths = sample_paths(*map(str, range(9)), "")
        with pytest.raises(UsageError, match="needs 9 calls, but max_judge_calls is 8"):
            check_calls(MajorityJudge([PatternJudge(), judge]), paths, 8)
        check_calls(judge, paths, 9)
        check_calls(PatternJudge(), paths, 0)
        assert requests == []
    assert "openai/m: 9 calls, about" in caplog.text and "queue" not in caplog.text
