"""Laws of settings: what decides a run's identity is marked on the field, and `--help` shows groups."""

from dataclasses import dataclass

import pytest

from course_correction.base.settings import identity_of, parse_settings, setting


@dataclass
class Settings:
    output_dir: str = setting("runs/x", "where rows go", group="output", identity=())
    top_p: float = setting(1.0, "nucleus", group="sampling", identity="sampling")
    num_paths: int = setting(4, "paths per request", group="sampling", identity=("sampling", "judging"), common=True)


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
