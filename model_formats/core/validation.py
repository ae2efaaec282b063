"""Turns msgspec's validation errors into messages that name the field, down to the key, and what is allowed there."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, TypeVar

import msgspec

__all__ = ["converted", "decoded"]

T = TypeVar("T", bound=msgspec.Struct)

_FIELD = re.compile(r"Object (contains unknown|missing required) field `(.*)`")
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")
"""`.field`, `[2]`, or `[...]` for some key of a mapping."""


def decoded(data: bytes | str, type_: type[T]) -> T:
    """From JSON. Raises ValueError that names the field and the rule."""
    try:
        return msgspec.json.decode(data, type=type_)
    except msgspec.ValidationError as e:
        raise ValueError(_message(e, json.loads(data), type_)) from e
    except (ValueError, RecursionError) as e:
        raise ValueError(f"not JSON: {e}") from e


def converted(plain: object, type_: type[T], *, strict: bool = True) -> T:
    """From the values that JSON, YAML or TOML gives; not `strict`, also from text for numbers. Raises ValueError as `decoded`."""
    try:
        _need_json(plain, "")
        return msgspec.convert(plain, type_, strict=strict)
    except msgspec.ValidationError as e:
        raise ValueError(_message(e, plain, type_)) from e
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def _need_json(plain: Any, where: str) -> None:
    """YAML, TOML and arithmetic have dates, sets, infinities and NaN; a document has not."""
    if isinstance(plain, dict | list | tuple):
        for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
            _need_json(value, f"{where}.{key}")
    elif isinstance(plain, float) and not math.isfinite(plain):
        raise ValueError(f"{where[1:]}: must be a finite number, not {plain}")
    elif not isinstance(plain, str | int | float | None):
        raise ValueError(f"{where[1:]}: {type(plain).__name__} has no place in JSON")


def _message(error: msgspec.ValidationError, plain: object, type_: type[msgspec.Struct]) -> str:
    """What is wrong with plain values, the field first: `models.digits.champion.version: Expected `int`, got `str``."""
    what, at, path = str(error).rpartition(" - at `$")
    what, path = (what, path.removesuffix("`")) if at else (path, "")
    if what.startswith("Invalid"):
        what += "".join(f"; must be {choice}" for choice in sorted(_choices(type_, path)))
    before, unknown, after = path.partition("[...]")
    where = before + (f".{_key(plain, before, type_)}" if unknown else "") + after
    if field := _FIELD.fullmatch(what):
        where, what = f"{where}.{field[2]}", "unknown field" if field[1] == "contains unknown" else "missing"
    where = re.sub(r"\[(\d+)\]", r".\1", where).removeprefix(".")
    what = what.replace(r"(?!\\n)", "")  # see `model_formats.core.types.matching`
    return f"{where}: {what}" if where else what


def _key(plain: Any, path: str, type_: type[msgspec.Struct]) -> str:
    """The key of the mapping at `path` that is refused alone."""
    steps = [name or int(number) for name, number in _STEP.findall(path)]
    for key in reduce(lambda value, step: value[step], steps, plain):
        try:
            msgspec.convert(_with_only(key, plain, steps), type_)
        except msgspec.ValidationError:
            return str(key)
    return "?"


def _with_only(key: str, plain: Any, steps: Sequence[str | int]) -> Any:
    """The same values, but in the mapping that the steps lead to only one key."""
    if not steps:
        return {key: plain[key]}
    step, *others = steps
    copy: Any = dict(plain) if isinstance(plain, dict) else list(plain)
    copy[step] = _with_only(key, plain[step], others)
    return copy


def _choices(type_: type[msgspec.Struct], path: str) -> set[str]:
    """The closed list that holds at `path`, if one does."""
    from msgspec import inspect as about

    found: list[about.Type] = [about.type_info(type_)]
    for field, _ in _STEP.findall(path):
        found = [inner for outer in found for inner in _inside(outer, field)]
    flat = [inner for outer in found for inner in (outer.types if isinstance(outer, about.UnionType) else (outer,))]
    literals = {", ".join(map(str, t.values)) for t in flat if isinstance(t, about.LiteralType)}
    return literals | {", ".join(member.value for member in t.cls) for t in flat if isinstance(t, about.EnumType)}


def _inside(info: Any, field: str) -> Iterator[Any]:
    from msgspec import inspect as about

    match info:
        case about.Metadata(type=inner):
            yield from _inside(inner, field)
        case about.UnionType(types=types):
            for inner in types:
                yield from _inside(inner, field)
        case about.StructType(fields=fields):
            yield from (f.type for f in fields if f.encode_name == field)
        case about.DictType(value_type=inner) | about.VarTupleType(item_type=inner) | about.ListType(item_type=inner):
            yield inner
