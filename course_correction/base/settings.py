"""Settings dataclasses: declared, read from the command line and from recipes, and checked. Knows nothing of models."""

import argparse
import copy
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, field, fields
from enum import Enum
from types import UnionType
from typing import Any, ClassVar, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from course_correction.base.errors import UsageError
from course_correction.base.redaction import public_value

# The groups of `--help`, in their order.
GROUPS = ("model", "data", "sampling", "judging", "suites", "training", "output", "Hub")


class Settings(Protocol):
    """An instance of a settings dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Metadata(dict[str, Any]):
    """Metadata of a setting. TRL's parser passes a copy of it to argparse, which accepts `help` only."""

    def copy(self) -> dict[str, Any]:
        """Return the arguments for argparse."""
        return {"help": self["help"]}


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    group: str,
    identity: str | tuple[str, ...],
    default_factory: Any = MISSING,
    common: bool = False,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
) -> Any:
    """Return a field of a settings dataclass.

    Args:
        default: Default value.
        help: Line in `--help`.
        group: Group in `--help`, one of `GROUPS`.
        identity: The stages whose rows the setting decides, such as "sampling", or () for none. These stages refuse a folder
            that was filled under another value.
        default_factory: Makes the default, where that is mutable.
        common: Whether most users need it. `--help` lists common settings first.
        at_least: The smallest value that `check_values` accepts, in a list for each entry.
        at_most: The largest value, in a list for each entry.
        above: A value that must be exceeded, in a list by each entry.

    Raises:
        ValueError: If there is no such group.
    """
    if group not in GROUPS:
        raise ValueError(f"group is {group!r}, but takes {', '.join(GROUPS)}.")
    stages = (identity,) if isinstance(identity, str) else identity
    options: dict[str, Any] = {"default": default} if default_factory is MISSING else {"default_factory": default_factory}
    return field(
        **options,
        metadata=_Metadata(help=help, group=group, identity=stages, common=common, bounds=(at_least, at_most, above)),
    )


def identity_of(settings: Settings, stage: str) -> dict[str, Any]:
    """Return the settings, by name, that decide the rows of a stage, which `setting` marks with `identity`."""
    return {one.name: getattr(settings, one.name) for one in fields(settings) if stage in one.metadata.get("identity", ())}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and shows each option with its default, without its spelling with hyphens."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [flag for flag in action.option_strings if "-" not in flag[2:]]
        return super()._format_action_invocation(shown)


def parse_settings(
    settings_classes: Sequence[type],
    arguments: Sequence[str] | None = None,
    description: str | None = None,
    epilog: str | None = None,
) -> tuple[Any, ...]:
    """Read settings from `--config recipe.yaml`, then from the command line, which has priority.

    Args:
        settings_classes: The dataclasses.
        arguments: The command line, `sys.argv` by default.
        description: First part of `--help`.
        epilog: Last part of `--help`.

    Returns:
        One instance per class, in the order given.

    Raises:
        UsageError: On an unknown key, a value that does not fit, or a recipe that cannot be read.
    """
    from trl import TrlParser

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for index, argument in enumerate(arguments):
        if argument.startswith("--config="):
            arguments[index : index + 1] = ["--config", argument.removeprefix("--config=")]
            break
    parser = TrlParser(
        list(settings_classes),
        usage="%(prog)s [--config recipe.yaml] [--setting value ...]",
        description=description,
        epilog=epilog,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.error = _raise_usage_error
    _group_help(parser, settings_classes)
    if "--config" in arguments:
        position = arguments.index("--config") + 1
        if position == len(arguments):
            raise UsageError("--config needs the path of a recipe.")
        _check_recipe(arguments[position], settings_classes)
    try:
        settings = parser.parse_args_and_config(arguments)
        for part in settings:
            # The libraries check their own settings, and change them at the same time.
            if not type(part).__module__.startswith(("trl", "transformers")):
                check_values(part)
        return settings
    except UsageError:
        raise
    except (ValueError, TypeError) as error:
        unused = re.search(r"not used by the HfArgumentParser: \[(.*)\]", str(error))
        if unused:
            raise UsageError(f"Unknown setting: {unused[1]}. See --help.") from None
        raise UsageError(" ".join(str(error).split())) from None


def given_settings(parts: Sequence[Settings], arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the settings that the recipe and the command line name, with public values: a recipe for the same run.

    Args:
        parts: The instances that `parse_settings` returned.
        arguments: As for `parse_settings`.
    """
    left_out = {"output_dir", "push_to_hub", "resume_from_checkpoint", "hub_token", "hub_model_id", "hub_private_repo"}
    # The training script sets it itself, without a GPU.
    left_out |= {"use_cpu"}
    given = {}
    for name in dict.fromkeys(given_names(arguments)):
        for part in parts:
            if hasattr(part, name) and name not in left_out:
                value = getattr(part, name)
                value = public_value(value.value if isinstance(value, Enum) else value)
                given[name] = value if isinstance(value, bool | int | float | list | dict | type(None)) else str(value)
    return given


def given_names(arguments: Sequence[str] | None = None) -> list[str]:
    """Return the names of the settings in the recipe and on the command line, the recipe's first."""
    import yaml

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    named: list[str] = []
    for index, argument in enumerate(arguments):
        recipe = argument.removeprefix("--config=") if argument.startswith("--config=") else None
        recipe = arguments[index + 1] if argument == "--config" and index + 1 < len(arguments) else recipe
        if recipe:
            with open(recipe, encoding="utf-8") as file:
                named = [*yaml.safe_load(file), *named]
        elif argument.startswith("--"):
            named.append(argument.removeprefix("--").split("=")[0].replace("-", "_"))
    return named


def check_values(settings: Settings) -> None:
    """Refuse values outside the type, the choices or the range of their field. argparse does not check a recipe.

    Raises:
        UsageError: Naming the field, the value and the values that it takes.
    """
    for one in fields(settings):
        _check_bounds(one.name, getattr(settings, one.name), *one.metadata.get("bounds", (None, None, None)))
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name, None)
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if any(_fits(value, option) for option in options):
            continue
        wanted = " or ".join(
            ", ".join(map(repr, get_args(option)))
            if get_origin(option) is Literal
            else "null"
            if option is type(None)
            else getattr(option, "__name__", str(option))
            for option in options
        )
        raise UsageError(f"{name} is {value!r}, but takes {wanted}.")


def _check_bounds(name: str, value: object, at_least: float | None, at_most: float | None, above: float | None) -> None:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        too_low = (at_least is not None and not number >= at_least) or (above is not None and not number > above)
        if too_low or (at_most is not None and not number <= at_most):
            limits = [(above, "above"), (at_least, "at least"), (at_most, "at most")]
            wanted = " and ".join(f"{word} {limit:g}" for limit, word in limits if limit is not None)
            raise UsageError(f"{name} is {value}, but must be {wanted}.")


def _fits(value: object, option: Any) -> bool:
    if get_origin(option) is Literal:
        return value in get_args(option)
    if get_origin(option) is list:
        return isinstance(value, list) and all(_fits(item, get_args(option)[0]) for item in value)
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, option)


def _group_help(parser: argparse.ArgumentParser, settings_classes: Sequence[type]) -> None:
    """Show a parser's options in the groups of their settings, the common ones first."""
    metadata = {one.name: one.metadata for settings_class in settings_classes for one in fields(settings_class)}
    actions = [action for action in parser._actions if "group" in metadata.get(action.dest, {})]
    actions.sort(key=lambda action: not metadata[action.dest]["common"])
    for action in actions:
        if isinstance(action, argparse._StoreFalseAction):
            # `--no_x` is `--x false`.
            action.help = argparse.SUPPRESS
    for name in GROUPS:
        if members := [action for action in actions if metadata[action.dest]["group"] == name]:
            group = parser.add_argument_group(name)
            for action in members:
                # argparse has no public way to move an option to another group.
                parser._optionals._group_actions.remove(action)
                group._group_actions.append(action)


def _raise_usage_error(message: str) -> None:
    raise UsageError(f"{message}. See --help.")


def _check_recipe(path: str, settings_classes: Sequence[type]) -> None:
    """Refuse a recipe with unknown keys. TRL refuses it too, but only after it has set the environment."""
    import difflib

    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            recipe = yaml.safe_load(file)
    except OSError as error:
        raise UsageError(f"Recipe {path} cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"Recipe {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise UsageError(f"Recipe {path} must contain `key: value` lines.")
    known = {field.name for settings_class in settings_classes for field in fields(settings_class)} | {"env"}
    for key in recipe:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"Did you mean `{close[0]}`?" if close else "Remove it, or see --help."
            raise UsageError(f"Recipe {path} has an unknown key `{key}`. {hint}")
