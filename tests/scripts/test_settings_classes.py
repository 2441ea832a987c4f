"""Every setting states its help, its group in `--help` and the stages whose rows it decides."""

import dataclasses

from course_correction.base.settings import GROUPS
from tests.support.settings import SCRIPTS, settings_classes

STAGES = {
    "model", "sampling", "judging", "jailbreak", "jailbreak_judging", "general", "benign", "dynamics", "synthesis",
    "training",
}  # fmt: skip


def refuse(is_wrong) -> None:
    """Fail with the name of every setting whose metadata are wrong."""
    wrong = sorted(
        f"{cls.__module__}.{name}.{field.name}"
        for name, cls in settings_classes().items()
        for field in dataclasses.fields(cls)
        if is_wrong(field.metadata)
    )
    assert not wrong, f"{len(wrong)} settings:\n" + "\n".join(wrong)


def test_the_settings_of_every_script_are_among_the_classes():
    assert {name for names in SCRIPTS.values() for name in names} | {"DemoSettings", "PushSettings"} <= set(
        settings_classes()
    )


def test_every_setting_states_which_stages_it_decides():
    refuse(lambda metadata: "identity" not in metadata)


def test_every_stage_of_a_setting_is_a_stage():
    refuse(lambda metadata: not set(metadata.get("identity", ())) <= STAGES)


def test_every_setting_has_a_line_and_a_group_in_help():
    refuse(lambda metadata: not metadata.get("help") or metadata.get("group") not in GROUPS)
