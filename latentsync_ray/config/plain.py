"""Plain values: what JSON and YAML can hold, and what passes between processes that share no classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from latentsync_ray.config.domains import Domain

Plain: TypeAlias = bool | int | float | str | list["Plain"] | dict[str, "Plain"] | None
Settings: TypeAlias = dict[str, Plain]
"""What JSON calls an object: values by name."""
Parameters: TypeAlias = Mapping[str, Plain]
"""The values that a search gives to a trial's recipe, by dotted name."""
NOT_PLAIN = {"plain": False}
"""Metadata of a dataclass's field that its plain form lacks, since no user sets it."""


def plain(value: object) -> Plain:
    """The plain value that settings stand for: dataclasses become mappings, tuples become lists."""
    if isinstance(value, Domain):
        return plain(value.as_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if is_plain(f)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    assert value is None or isinstance(value, bool | int | float | str), f"{value!r} is no plain value"
    return value


def is_plain(field: dataclasses.Field[Any]) -> bool:
    """Whether a field is in the plain form of its dataclass."""
    return bool(field.metadata.get("plain", True))


def settings(value: object) -> Settings:
    """`plain` for what stands for a mapping."""
    made = plain(value)
    assert isinstance(made, dict)
    return made


def without(values: Settings, names: Iterable[str]) -> Settings:
    """A copy of settings that lacks some, by dotted name."""
    left = dict(values)
    for name in names:
        head, _, rest = name.partition(".")
        inner = left.get(head)
        if rest and isinstance(inner, dict):
            left[head] = without(inner, [rest])
        elif not rest:
            left.pop(head, None)
    return left
