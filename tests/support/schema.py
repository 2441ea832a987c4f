"""Compare values and paths of keys with the shapes that TypedDicts describe."""

import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

Shapes = Sequence[Any]  # Alternatives: the members of a union.


def shapes_of(hint: Any) -> Shapes:
    """Return the alternatives of a type, without None."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [member for member in members if member is not type(None)]


def inside(shapes: Shapes, key: str | None) -> Shapes | None:
    """Return the shapes under a key or place (None: some key that is computed); None if no shape has that key.

    An empty list means that nothing is known of what is there: a method of a list or string, or a value of any type.
    """
    known: list[Any] = []
    has_key = False
    for shape in shapes:
        origin, args = get_origin(shape), get_args(shape)
        if is_typeddict(shape):
            hints = get_type_hints(shape)
            has_key |= key is None or key in hints
            known += shapes_of(hints[key]) if key in hints else []
        elif origin is dict:
            has_key, known = True, [*known, *shapes_of(args[1])]
        elif origin in (list, tuple):
            has_key = True
            if key is None or key.isdigit():
                chosen = args[int(key) :][:1] if key and origin is tuple else args
                known += [one for arg in chosen for one in shapes_of(arg)]
        else:
            has_key = True
    return known if has_key else None


def unknown_key(path: Sequence[str | None], hint: Any) -> str | None:
    """Return the first key on the path that its shape does not have."""
    shapes = shapes_of(hint)
    for key in path:
        below = inside(shapes, key)
        if below is None:
            return key
        if not below:
            return None
        shapes = below
    return None


def mismatches(value: Any, hint: Any, place: str = "") -> list[str]:
    """Return the places where a value does not have the shape of a type: wrong types, missing and unknown keys."""
    attempts = [_mismatches(value, shape, place) for shape in _all_members(hint)]
    return min(attempts, key=len)


def _all_members(hint: Any) -> Shapes:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _mismatches(value: Any, shape: Any, place: str) -> list[str]:
    origin, args = get_origin(shape), get_args(shape)
    if is_typeddict(shape):
        if not isinstance(value, dict):
            return [f"{place}: {type(value).__name__} instead of {shape.__name__}"]
        hints = get_type_hints(shape)
        wrong = [f"{place}.{key}: missing" for key in shape.__required_keys__ - value.keys()]
        wrong += [f"{place}.{key}: unknown" for key in value.keys() - hints.keys()]
        known = [key for key in value if key in hints]
        return wrong + [one for key in known for one in mismatches(value[key], hints[key], f"{place}.{key}")]
    if origin is dict and isinstance(value, dict):
        return [one for key, entry in value.items() for one in mismatches(entry, args[1], f"{place}.{key}")]
    if origin is list and isinstance(value, list):
        return [one for number, entry in enumerate(value) for one in mismatches(entry, args[0], f"{place}.{number}")]
    plain = (int, float) if shape is float else origin or shape
    return [] if isinstance(value, plain) and origin is None else [f"{place}: {type(value).__name__} instead of {shape}"]
