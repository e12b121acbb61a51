"""What can be set: every field of a dataclass of settings with its type, default and docstring."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

import yaml

from latentsync_ray.config.domains import KINDS, Domain
from latentsync_ray.config.plain import is_plain, plain

_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "value"}


@dataclass(frozen=True)
class Field:
    """One thing that can be set."""

    name: str
    """Dotted name, as YAML files and the command line have it."""
    kind: str
    """What it may hold, in words: `whole number or null`."""
    default: str
    """In YAML; `must be given` without one; empty for a section whose fields have their own."""
    text: str
    """Its docstring, as one line."""

    def __str__(self) -> str:
        """Name, type and default, and the docstring below."""
        head = f"{self.name}: {self.kind}{self.default and f'; {self.default}'}"
        return f"{head}\n" + textwrap.fill(self.text, 80, initial_indent="    ", subsequent_indent="    ")


def fields_of(schema: type, prefix: str = "", made: object = None) -> Iterator[Field]:
    """Every field of a dataclass of settings, and behind a section those within it.

    Args:
        schema: The dataclass.
        prefix: Of the names, such as `first_stage.`.
        made: What its fields are if nothing is given, where these are not the dataclass's own defaults.
    """
    hints, texts = typing.get_type_hints(schema), docstrings(schema)
    for field in filter(is_plain, dataclasses.fields(schema)):
        name, hint = prefix + field.name, hints[field.name]
        default = _default(field) if made is None else getattr(made, field.name)
        yield Field(name, " or ".join(_words(hint)), _said(default), texts.get(field.name, ""))
        for section in (hint, *typing.get_args(hint)):
            if isinstance(section, type) and dataclasses.is_dataclass(section):
                yield from fields_of(section, f"{name}.", default if isinstance(default, section) else None)


@functools.cache
def docstrings(schema: type) -> Mapping[str, str]:
    """The docstring under each field of a dataclass, as one line; that of a subclass counts before its base's."""
    found: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(schema.__mro__)):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                    found[name] = " ".join(docstring.split())
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    """What a field is if it is not given; MISSING if it must be."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _said(default: Any) -> str:
    if dataclasses.is_dataclass(default):
        return ""
    return "must be given" if default is dataclasses.MISSING else f"default {in_yaml(plain(default))}"


def in_yaml(value: Any) -> str:
    """A plain value in YAML, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def _words(hint: Any) -> Iterable[str]:
    """What a type is called, its alternatives one by one."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return ("null",)
    if origin in (Union, types.UnionType):
        return (word for alternative in inner for word in _words(alternative))
    if origin is Literal:
        return (in_yaml(value) for value in inner)
    if origin is tuple:
        (item,) = {" or ".join(_words(item)) for item in inner if item is not Ellipsis}
        return (f"list of {item}s" if Ellipsis in inner else f"list of {len(inner)} {item}s",)
    if origin is dict:
        return (f"mapping of names to {' or '.join(_words(inner[1]))}",)
    if isinstance(hint, type) and issubclass(hint, Domain):
        return ("one of " + ", ".join(KINDS) + " with its values",)
    return ("section" if dataclasses.is_dataclass(hint) else _WORDS[hint],)
