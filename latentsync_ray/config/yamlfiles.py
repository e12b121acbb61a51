"""YAML as the project's files and arguments use it: plain values, nothing that is looked up elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.plain import Settings

_INTERPOLATION = "${"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.1 but for three things: 1e-4 is a number, a date is text, and a key that is given twice is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own name and form)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are text and different from each other."""
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str" and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"names must be text, got {key.value}", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"found duplicate key {key.value}", key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(file: Path) -> Settings:
    """The values of a file that maps names to values.

    Raises:
        UserError: There is no such file, or it is none.
    """
    try:
        values = _load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; create it or name another") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)}); name a YAML file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: must be valid YAML: {one_line(error)}; mend it there") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: must be a mapping of names to values, got {values!r}; write name: value")
    refuse_interpolation(values, f"{file}: ")
    return values


def read_value(text: str, where: str) -> Any:
    """The value that a text stands for in YAML.

    Raises:
        UserError: It is no YAML.
    """
    try:
        return _load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: the value must be YAML: {one_line(error)}; quote it or correct it") from None


def refuse_interpolation(value: Any, where: str, key: str = "") -> None:
    """Refuses what OmegaConf would replace by another value, as `${oc.env:NAME}`: it may be a secret.

    Args:
        value: Plain values, however deep.
        where: Begins the error, for example with the file.
        key: Dotted name of the value.

    Raises:
        UserError: A text in it contains `${`.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            refuse_interpolation(item, where, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_interpolation(item, where, key)
    elif isinstance(value, str) and _INTERPOLATION in value:
        raise UserError(
            f"{where}{key}: must be written out, got {value!r}; nothing is looked up, so remove {_INTERPOLATION}"
        )


def one_line(error: Exception) -> str:
    """What an error says, in one line, without what OmegaConf adds for programmers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(useful) or type(error).__name__


def _load(text: str) -> Any:
    try:
        value = yaml.load(text, Loader=_Loader)
        _check_plain(value)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply, or in itself") from None
    except (ValueError, KeyError) as error:  # a tag that its value does not fit, such as !!int a
        raise yaml.YAMLError(str(error)) from None
    return value


def _check_plain(value: Any) -> None:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item)
    elif not (value is None or isinstance(value, str | int | float)):
        raise yaml.YAMLError(f"values must be text or numbers, got {value!r}")
