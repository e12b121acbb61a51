"""Reads recipes and SyncNet trainings from YAML files and `key=value` arguments, and writes recipes.

A recipe is a folder of three files: `recipe.yaml` (seed, data, components, validation, transition) and the two
stage files `first_stage.yaml` and `second_stage.yaml`. The training of a SyncNet is one file by itself, and so is a
search space (`searchfiles`). OmegaConf fits values to the frozen dataclasses of `config`, `search_config` and
`syncnet_config`; beyond this module and `searchfiles` there are only those.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from latentsync_ray.config.arguments import argument_value, split_argument
from latentsync_ray.config.domains import Domain
from latentsync_ray.config.recipe import Complaint, ComponentsConfig, Recipe, StageConfig, UserError
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.config.yamlfiles import one_line, read_yaml, refuse_interpolation
from latentsync_ray.latentsync.syncnet.config import SyncNetConfig

STAGE_FILES = {"first_stage": "first_stage.yaml", "second_stage": "second_stage.yaml"}
_Config = TypeVar("_Config", Recipe, SearchConfig, SyncNetConfig)
_RECIPE_SOURCES = tuple(f"components.{f.name}" for f in dataclasses.fields(ComponentsConfig))
_SYNCNET_SOURCES = ("vae", "audio_encoder")


def load_recipe(folder: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe folder, applies overrides by dotted name, and validates the whole.

    Args:
        folder: Holds `recipe.yaml`, `first_stage.yaml` and `second_stage.yaml`.
        overrides: For example `{"transition.at_step": 160}`.

    Raises:
        UserError: A file is missing or unreadable, or a value breaks a rule.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such recipe folder; name one that holds recipe.yaml and the stage files")
    origins = {"": folder / "recipe.yaml"} | {stage: folder / name for stage, name in STAGE_FILES.items()}
    top = read_yaml(origins[""])
    for stage in STAGE_FILES:
        if stage in top:
            raise UserError(f"{origins['']}: {stage}: belongs into its own file; move it to {origins[stage]}")
        top[stage] = read_yaml(origins[stage])
    node = merged(Recipe, top, origins)
    _resolve_paths(node, folder, _RECIPE_SOURCES)
    return with_overrides(checked(Recipe, node, origins), overrides or {})


def with_overrides(
    recipe: Recipe, overrides: Mapping[str, Any], origin: str = "override", base: Path | None = None
) -> Recipe:
    """The recipe with some values replaced by dotted name, validated again.

    Args:
        recipe: The recipe to start from.
        overrides: Dotted names and values.
        origin: What to call the place where the overrides come from in an error.
        base: What relative folders among them are relative to; the working directory unless it is given.

    Raises:
        UserError: A name does not exist, or a value breaks a rule.
    """
    if not overrides:
        return recipe
    origins = {"": Path(origin)}
    node: DictConfig = OmegaConf.structured(recipe)
    for key, value in overrides.items():
        node = merged_into(node, nested(key, value), {"": Path(f"{origin}: {key}")}, named=True)
    _resolve_paths(node, base or Path.cwd(), _RECIPE_SOURCES)
    return checked(Recipe, node, origins)


class Variants:
    """The recipes of many trials: what `with_overrides` gives, in microseconds where it takes milliseconds.

    Args:
        recipe: The recipe that all of them start from.
        origin: What to call the place where their values come from in an error.
    """

    def __init__(self, recipe: Recipe, origin: str = "param_space"):
        self._recipe, self._origin = recipe, origin
        self._read: dict[tuple[str, str], Any] = {}

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with some values replaced by dotted name.

        Raises:
            UserError: A name does not exist, or the values break a rule.
        """
        made = self._recipe
        if all(inner_value(made, name.rpartition(".")[0]) is not None for name in values):
            with contextlib.suppress(UserError):  # a value that breaks a rule alone may be right beside the others
                for name, value in values.items():
                    made = _replaced(made, name.split("."), self._as_read(name, value))
                if next(_all_complaints(made), None) is None:
                    return made
        # Makes what is not there, and says what breaks a rule.
        return with_overrides(self._recipe, values, self._origin)

    def _as_read(self, name: str, value: Any) -> Any:
        before = inner_value(self._recipe, name)
        if type(before) in (int, float) and type(value) in (int, type(before)):
            return type(before)(value)
        if (name, repr(value)) not in self._read:
            self._read[name, repr(value)] = inner_value(with_overrides(self._recipe, {name: value}), name)
        return self._read[name, repr(value)]


def inner_value(config: Any, name: str) -> Any:
    """What is at a dotted name; None if something on the way is null."""
    while name:
        if isinstance(config, dict) and name in config:  # its own keys may be dotted names
            return config[name]
        part, _, name = name.partition(".")
        config = config.get(part) if isinstance(config, dict) else getattr(config, part, None)
    return config


def _replaced(config: Any, parts: list[str], value: Any) -> Any:
    if len(parts) > 1:
        inner = config.get(parts[0]) if isinstance(config, dict) else getattr(config, parts[0])
        value = _replaced(inner, parts[1:], value)
    if isinstance(config, dict):
        return {**config, parts[0]: value}
    return dataclasses.replace(config, **{parts[0]: value})


def load_syncnet(file: str | Path, arguments: list[str]) -> SyncNetConfig:
    """Reads the file of a SyncNet's training, with `key=value` arguments applied.

    Raises:
        UserError: The file is missing, an argument is no `key=value`, or a value breaks a rule.
    """
    file = Path(file)
    node = merged(SyncNetConfig, read_yaml(file), {"": file})
    _resolve_paths(node, file.parent, _SYNCNET_SOURCES)
    config = checked(SyncNetConfig, node, {"": file})
    if not arguments:
        return config
    for argument in arguments:
        key, text = split_argument(argument)
        value = argument_value(SyncNetConfig, key, text, key)
        node = merged_into(node, nested(key, value), {"": Path(f"argument {key}")}, named=True)
    _resolve_paths(node, Path.cwd(), _SYNCNET_SOURCES)
    return checked(SyncNetConfig, node, {"": Path("argument")})


def nested(key: str, value: Any) -> dict[str, Any]:
    """Mappings in each other that hold a value at a dotted name."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def merged(schema: type[_Config], values: dict[str, Any], origins: dict[str, Path]) -> DictConfig:
    """`merged_into` for a first set of values, which must be complete."""
    return merged_into(OmegaConf.structured(schema), values, origins)


def merged_into(
    node: DictConfig, values: dict[str, Any], origins: dict[str, Path], named: bool = False
) -> DictConfig:
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


def _culprit(node: DictConfig, values: dict[str, Any], prefix: str = "") -> str:
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


def checked(schema: type[_Config], node: DictConfig, origins: dict[str, Path], **fields: Any) -> _Config:
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
    config = dataclasses.replace(config, **fields)
    for key, rule, remedy in _all_complaints(config):
        file, inner = _origin(key, origins)
        raise UserError(f"{file}: {inner}: {rule}, got {_plain(inner_value(config, key))!r}; {remedy}")
    return config


def _all_complaints(config: Any, prefix: str = "") -> Iterator[Complaint]:
    for f in dataclasses.fields(config):
        if dataclasses.is_dataclass(getattr(config, f.name)):
            yield from _all_complaints(getattr(config, f.name), f"{prefix}{f.name}.")
    if hasattr(config, "complaints"):
        for name, rule, remedy in config.complaints():
            yield prefix + name, rule, remedy


def _origin(key: str, origins: dict[str, Path]) -> tuple[Path, str]:
    """The file that a dotted name comes from, and its name within that file."""
    head, _, rest = key.partition(".")
    return (origins[head], rest) if head in origins and rest else (origins[""], key)


def _resolve_paths(node: DictConfig, base: Path, sources: Iterable[str]) -> None:
    """Makes the folder of the data and the folders among the networks' sources absolute; hub ids stay as they are."""
    for key in ("data.folder", *sources):
        value = OmegaConf.select(node, key)
        if isinstance(value, str) and (value.startswith((".", "/", "~")) or key == "data.folder"):
            section, _, _ = key.rpartition(".")
            for frozen in (node, OmegaConf.select(node, section) if section else node):
                OmegaConf.set_readonly(frozen, False)
            OmegaConf.update(node, key, str((base / Path(value).expanduser()).resolve()))


def stage_from_settings(settings: Mapping[str, Any]) -> StageConfig:
    """The stage configuration that a segment's plain settings stand for."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StageConfig), dict(settings)))
    assert isinstance(config, StageConfig)
    return config


def recipe_files(recipe: Recipe) -> dict[str, str]:
    """File name -> YAML text of a recipe folder from which the same training starts again."""
    values = dataclasses.asdict(recipe)
    stages = {file: values.pop(stage) for stage, file in STAGE_FILES.items()}
    contents = {"recipe.yaml": values, **stages}
    return {file: yaml.safe_dump(_plain(content), sort_keys=False) for file, content in contents.items()}


def _plain(value: Any) -> Any:
    """Tuples as lists and settings as mappings, as YAML has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Domain):
        return value.as_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
