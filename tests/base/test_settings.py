"""Laws of settings: what decides a run's identity is marked on the field, and `--help` shows groups."""

from dataclasses import dataclass

import pytest

from course_correction.base.errors import UsageError
from course_correction.base.settings import check_values, identity_of, parse_settings, setting


@dataclass
class Settings:
    output_dir: str = setting("runs/x", "where rows go", group="output", identity=())
    top_p: float = setting(1.0, "nucleus", group="sampling", identity="sampling", above=0, at_most=1)
    lengths: list[int] = setting(default_factory=list, help="k", group="sampling", identity=(), at_least=1)
    num_paths: int = setting(4, "paths per request", group="sampling", identity=("sampling", "judging"), common=True)
    shuffle: bool = setting(True, "in random order", group="data", identity=())


def test_the_identity_of_a_stage_holds_the_settings_that_are_marked_with_it():
    assert identity_of(Settings(num_paths=2), "sampling") == {"top_p": 1.0, "num_paths": 2}
    assert identity_of(Settings(), "judging") == {"num_paths": 4}
    assert identity_of(Settings(), "report") == {}


def test_a_setting_says_which_stages_it_decides():
    with pytest.raises(TypeError, match="identity"):
        setting(1, "no identity given", group="output")


def test_an_unknown_group_is_refused():
    with pytest.raises(ValueError, match="group is 'others'"):
        setting(1, "in no group", group="others", identity=())


def test_help_shows_groups_in_order_and_common_settings_first(capsys):
    with pytest.raises(SystemExit):
        parse_settings([Settings], ["--help"])
    text = capsys.readouterr().out.split("options:")[1]
    places = [text.index(name) for name in ("sampling:", "--num_paths", "--top_p", "output:", "--output_dir")]
    assert places == sorted(places)
    assert text.count("--top_p") == 1


def test_help_keeps_the_lines_of_the_description_and_shows_one_spelling_of_a_setting(capsys):
    with pytest.raises(SystemExit):
        parse_settings([Settings], ["--help"], description="What it does.\n\npython script.py", epilog="And more.")
    text = capsys.readouterr().out
    assert text.startswith("usage: ") and "[--config recipe.yaml] [--setting value ...]\n\nWhat it does.\n\npython" in text
    assert "--top_p TOP_P" in text and "--top-p" not in text and "(default: 4)" in text
    assert "--shuffle" in text and "--no_shuffle" not in text and text.endswith("And more.\n")


def test_both_spellings_of_a_setting_and_of_its_denial_are_read():
    (settings,) = parse_settings([Settings], ["--num-paths", "7", "--no_shuffle"])
    assert (settings.num_paths, settings.shuffle) == (7, False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": 0.0}, "top_p is 0.0, but must be above 0 and at most 1."),
        ({"top_p": float("nan")}, "top_p is nan, but must be above 0 and at most 1."),
        ({"lengths": [3, 0]}, r"lengths is \[3, 0\], but must be at least 1."),
        ({"num_paths": "four"}, "num_paths is 'four', but takes int."),
    ],
)
def test_a_value_outside_its_range_or_type_is_refused_by_name(values, message):
    with pytest.raises(UsageError, match=message):
        check_values(Settings(**values))
