"""`key=value` arguments: a text field takes the text as it is, every other value is read as YAML."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, Union

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.yamlfiles import read_value, refuse_interpolation


@dataclass(frozen=True)
class Argument:
    """A value that is given beside the files: a text of the command line, or a plain value of a script."""

    key: str
    """Dotted name."""
    text: str | None
    """What the command line has behind the equals sign; None for a plain value."""
    value: Any = None
    """The plain value, where there is no text."""

    @classmethod
    def parse(cls, argument: str) -> Argument:
        """A `key=value` text of the command line."""
        return cls(*split_argument(argument))

    def read(self, schema: type, name: str) -> Any:
        """The value for a field of settings; see `argument_value`."""
        if self.text is not None:
            return argument_value(schema, name, self.text, self.key)
        refuse_interpolation(self.value, "argument ", self.key)
        return self.value

    def __str__(self) -> str:
        """As the command line has it."""
        if self.text is not None:
            return f"{self.key}={self.text}"
        return f"{self.key}={self.value if isinstance(self.value, str) else json.dumps(self.value, default=str)}"


def split_argument(argument: str) -> tuple[str, str]:
    """Name and text of a `key=value` argument.

    Raises:
        UserError: It is none.
    """
    key, equals, text = argument.partition("=")
    if not equals or not key:
        raise UserError(f"argument {argument!r}: must be key=value; for example second_stage.optimizer.lr=1e-4")
    return key, text


def argument_value(schema: type, name: str, text: str, key: str) -> Any:
    """The value that an argument gives to a field.

    Args:
        schema: Dataclass of the settings.
        name: Dotted name of the field in it.
        text: What is behind the equals sign.
        key: What is before it, for errors.

    Raises:
        UserError: The text is no YAML where that is asked for, or contains `${`.
    """
    kind, optional = _field_type(schema, name)
    is_text = kind is str or (typing.get_origin(kind) is Literal and all(isinstance(v, str) for v in kind.__args__))
    if not is_text:
        value = read_value(text, f"argument {f'{key}={text}'!r}")
    else:
        value = None if optional and text == "null" else text
    refuse_interpolation(value, "argument ", key)
    return value


def _field_type(schema: Any, name: str) -> tuple[Any, bool]:
    """The type of a field without None, and whether it may be None; Any where a dotted name leads nowhere."""
    optional = False
    for part in name.split("."):
        fields = typing.get_type_hints(schema) if dataclasses.is_dataclass(schema) else {}
        schema, optional = _without_none(fields.get(part, Any))
    return schema, optional


def _without_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (Union, types.UnionType):
        others = [option for option in typing.get_args(kind) if option is not type(None)]
        return (others[0] if len(others) == 1 else Any), len(others) < len(typing.get_args(kind))
    return kind, False
