"""The settings dataclasses of the scripts and the package, wherever they are defined."""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache

import course_correction

SCRIPTS = {
    "c2_syn.py": ("C2SynSettings",),
    "c2_eval.py": ("C2EvalSettings",),
    "eval.py": ("EvaluationSettings",),
    "train_dpo.py": ("TrainingData", "ObjectiveSettings"),
}


def _modules() -> Iterator[str]:
    yield from (script.removesuffix(".py") for script in SCRIPTS)
    for module in pkgutil.walk_packages(course_correction.__path__, "course_correction."):
        # Needs Inspect, which is installed for its own tests alone, and has no settings.
        if not module.name.endswith("inspect_provider"):
            yield module.name


@cache
def settings_classes() -> dict[str, type]:
    """Return every settings dataclass by its name. Records of plain parameters are frozen, and none of them."""
    classes: dict[str, type] = {}
    for name in _modules():
        module = importlib.import_module(name)
        for cls in vars(module).values():
            if not isinstance(cls, type) or cls.__module__ != name or not dataclasses.is_dataclass(cls):
                continue
            if re.search(r"(Settings|TrainingData|Arguments)$", cls.__name__) and not cls.__dataclass_params__.frozen:
                assert cls.__name__ not in classes, (
                    f"{cls.__name__} is defined in {classes[cls.__name__].__module__} and {name}"
                )
                classes[cls.__name__] = cls
    return classes


def settings_of(script: str) -> list[type]:
    """Return the project's own settings classes that a script parses."""
    return [settings_classes()[name] for name in SCRIPTS[script]]
