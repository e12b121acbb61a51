"""Fits plain values to frozen dataclasses by OmegaConf, and checks their rules; errors name file, key and remedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from latentsync_ray.config.errors import Complaint, UserError
from latentsync_ray.config.plain import Plain, Settings, plain
from latentsync_ray.config.yamlfiles import one_line, refuse_interpolation

ConfigT = TypeVar("ConfigT")


def inner_value(config: Any, name: str) -> Any:
    """What is at a dotted name; None if something on the way is null."""
    while name:
        if isinstance(config, dict) and name in config:  # its own keys may be dotted names
            return config[name]
        part, _, name = name.partition(".")
        config = config.get(part) if isinstance(config, dict) else getattr(config, part, None)
    return config


def nested(key: str, value: Plain) -> Settings:
    """Mappings in each other that hold a value at a dotted name."""
    *outer, last = key.split(".")
    made: Settings = {last: value}
    for part in reversed(outer):
        made = {part: made}
    return made


def merged(schema: type[ConfigT], values: Settings, origins: dict[str, Path]) -> DictConfig:
    """`merged_into` for a first set of values, which must be complete."""
    return merged_into(OmegaConf.structured(schema), values, origins)


def merged_into(node: DictConfig, values: Settings, origins: dict[str, Path], named: bool = False) -> DictConfig:
    """A node of OmegaConf with further values.

    Args:
        node: The values before.
        values: Further ones.
        origins: Files by the section that they hold.
        named: Whether `origins` names the value too, and more values may follow.

    Raises:
        UserError: A name does not exist, or a value does not fit its type.
    """
    refuse_interpolation(values, f"{origins['']}: ")
    try:
        merged = OmegaConf.merge(node, values)
        OmegaConf.to_object(merged) if not named else None
    except (OmegaConfBaseException, TypeError) as error:
        key = str(getattr(error, "full_key", None) or "") or _culprit(node, values)
        file, inner = _origin(key, origins)
        where = str(file) if named or not inner else f"{file}: {inner}"
        reason, value = one_line(error).rstrip("."), _value_at(values, key)
        if not (value is None or str(value) in reason or isinstance(error, ConfigKeyError)):
            reason += f", got {value!r}"
        raise UserError(f"{where}: {reason}; see {_fields_of(node)} for the fields") from None
    assert isinstance(merged, DictConfig)
    return merged


def _fields_of(node: DictConfig) -> str:
    """The module that describes a node's fields."""
    return str(OmegaConf.get_type(node).__module__.replace(".", "/") + ".py")


def _culprit(node: DictConfig, values: Settings, prefix: str = "") -> str:
    """Dotted name of the first value that does not fit, for errors in which OmegaConf names none."""
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else name
        try:
            OmegaConf.merge(node, nested(key, value))
        except (OmegaConfBaseException, TypeError):
            return _culprit(node, value, key) if isinstance(value, dict) else key
    return prefix


def _value_at(values: Any, key: str) -> Any:
    """The plain value of a dotted name; None for a mapping or if there is none."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return None if isinstance(values, dict) else values


def checked(schema: type[ConfigT], node: DictConfig, origins: dict[str, Path], **fields: Any) -> ConfigT:
    """The settings that a node of OmegaConf stands for.

    Args:
        schema: Their dataclass.
        node: All values but `fields`.
        origins: Files by the section that they hold.
        fields: Values that OmegaConf knows nothing of.

    Raises:
        UserError: A value is missing or breaks a rule.
    """
    refuse_interpolation(OmegaConf.to_container(node, resolve=False), f"{origins['']}: ")
    try:
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        file, inner = _origin(str(getattr(error, "full_key", None) or ""), origins)
        raise UserError(f"{file}: {inner}: {one_line(error)}; see {_fields_of(node)} for the fields") from None
    assert isinstance(config, schema)
    if fields:
        config = dataclasses.replace(config, **fields)  # type: ignore[type-var]
    for key, rule, remedy in all_complaints(config):
        file, inner = _origin(key, origins)
        raise UserError(f"{file}: {inner}: {rule}, got {plain(inner_value(config, key))!r}; {remedy}")
    return config


def all_complaints(config: Any, prefix: str = "") -> Iterator[Complaint]:
    """The rules that settings and the sections in them break."""
    for f in dataclasses.fields(config):
        if dataclasses.is_dataclass(getattr(config, f.name)):
            yield from all_complaints(getattr(config, f.name), f"{prefix}{f.name}.")
    if hasattr(config, "complaints"):
        for name, rule, remedy in config.complaints():
            yield prefix + name, rule, remedy


def _origin(key: str, origins: dict[str, Path]) -> tuple[Path, str]:
    """The file that a dotted name comes from, and its name within that file."""
    head, _, rest = key.partition(".")
    return (origins[head], rest) if head in origins and rest else (origins[""], key)


def resolve_paths(node: DictConfig, base: Path, folders: Iterable[str], sources: Iterable[str]) -> None:
    """Makes folders and files among the values absolute; ids of models on a hub stay as they are.

    Args:
        node: The values.
        base: What relative ones are relative to.
        folders: Dotted names of values that are folders.
        sources: Dotted names of values that are a path or an id.

    Raises:
        UserError: The home folder of a user who does not exist, or another path that none can be.
    """
    for key in (*folders, *sources):
        value = OmegaConf.select(node, key)
        try:
            found = (
                _absolute(value, base)
                if isinstance(value, str) and (key in folders or is_path(value, base))
                else None
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{key}: must be a path, got {value!r} ({error}); correct it") from None
        if found is not None:
            section, _, _ = key.rpartition(".")
            for frozen in (node, OmegaConf.select(node, section) if section else node):
                OmegaConf.set_readonly(frozen, False)
            OmegaConf.update(node, key, str(found))


def is_path(source: str, base: Path) -> bool:
    """Tells whether a network's source is a path: it looks like one, or exists. Else it is a hub id.

    Args:
        source: A path or a hub id, `owner/name`.
        base: What a relative path is relative to, if not to the working directory.
    """
    return source.startswith((".", "/", "~")) or _absolute(source, base).exists()


def _absolute(source: str, base: Path) -> Path:
    path = Path(source).expanduser()
    is_elsewhere = not source.startswith(".") and not (base / path).exists() and path.exists()
    return ((Path.cwd() if is_elsewhere else base) / path).resolve()


def with_values(config: ConfigT, values: Mapping[str, Any], origin: str) -> ConfigT:
    """Settings with some values replaced by dotted name, validated again.

    Raises:
        UserError: A name does not exist, or a value breaks a rule.
    """
    if not values:
        return config
    return checked(type(config), with_values_in(config, values, origin), {"": Path(origin)})


def with_values_in(config: object, values: Mapping[str, Any], origin: str) -> DictConfig:
    """What `with_values` validates."""
    node: DictConfig = OmegaConf.structured(config)
    given = {name for key, value in values.items() for name in _names(nested(key, value))}
    for key, value in values.items():
        content = _without_alternatives(config, nested(key, value), given)
        node = merged_into(node, content, {"": Path(f"{origin}: {key}")}, named=True)
    return node


def _names(values: Settings, prefix: str = "") -> Iterator[str]:
    """The dotted names of values and of the mappings that hold them."""
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}.")


def _without_alternatives(config: Any, values: Settings, given: set[str], prefix: str = "") -> Settings:
    """Values that replace what they are alternatives to: of a section's `alternatives` only one is not null.

    Args:
        config: What they are for.
        values: They.
        given: Dotted names of all values that are given, of which none is replaced.
        prefix: Of their names.
    """
    made = {
        name: _without_alternatives(getattr(config, name, None), value, given, f"{prefix}{name}.")
        if isinstance(value, dict)
        else value
        for name, value in values.items()
    }
    alternatives = [name for name in getattr(config, "alternatives", ()) if f"{prefix}{name}" not in given]
    chosen = any(made.get(name) is not None for name in getattr(config, "alternatives", ()))
    return {**made, **dict.fromkeys(alternatives)} if chosen else made
