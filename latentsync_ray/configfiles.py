"""Reads recipes, search spaces and SyncNet trainings from YAML files and `key=value` arguments, and writes recipes.

A recipe is a folder of three files: `recipe.yaml` (seed, data, components, validation, transition) and the two
stage files `first_stage.yaml` and `second_stage.yaml`. A search space is one file that names a recipe, the training
of a SyncNet one file by itself. All are loaded with OmegaConf; beyond this module there are only the frozen
dataclasses of `config` and `syncnet_config`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from latentsync_ray.config import NEEDED_COMPONENTS, Complaint, ComponentsConfig, Recipe, StageConfig, UserError
from latentsync_ray.search_config import SearchConfig
from latentsync_ray.syncnet_config import SyncNetConfig

STAGE_FILES = {"first_stage": "first_stage.yaml", "second_stage": "second_stage.yaml"}
_SPACE_KINDS = ("grid", "choice", "uniform", "loguniform", "randint")
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
    top = _read_yaml(origins[""])
    for stage in STAGE_FILES:
        if stage in top:
            raise UserError(f"{origins['']}: {stage}: belongs into its own file; move it to {origins[stage]}")
        top[stage] = _read_yaml(origins[stage])
    node = _merged(Recipe, top, origins)
    _resolve_paths(node, folder, _RECIPE_SOURCES)
    return with_overrides(_checked(Recipe, node, origins), overrides or {})


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
        node = _merged_into(node, _nested(key, value), {"": Path(f"{origin}: {key}")}, named=True)
    _resolve_paths(node, base or Path.cwd(), _RECIPE_SOURCES)
    return _checked(Recipe, node, origins)


class Variants:
    """The recipes of many trials: what `with_overrides` gives, in microseconds where it takes milliseconds.

    Args:
        recipe: The recipe that all of them start from.
    """

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        self._read: dict[tuple[str, str], Any] = {}

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with some values replaced by dotted name.

        Raises:
            UserError: A name does not exist, or the values break a rule.
        """
        made = self._recipe
        if all(_inner(made, name.rpartition(".")[0]) is not None for name in values):
            for name, value in values.items():
                made = _replaced(made, name.split("."), self._as_read(name, value))
            if next(_all_complaints(made), None) is None:
                return made
        return with_overrides(self._recipe, values, "trial")  # makes what is not there, and says what breaks a rule

    def _as_read(self, name: str, value: Any) -> Any:
        before = _inner(self._recipe, name)
        if type(before) in (int, float) and type(value) in (int, type(before)):
            return type(before)(value)
        if (name, repr(value)) not in self._read:
            self._read[name, repr(value)] = _inner(with_overrides(self._recipe, {name: value}, "trial"), name)
        return self._read[name, repr(value)]


def _inner(config: Any, name: str) -> Any:
    """What is at a dotted name; None if something on the way is null."""
    for part in filter(None, name.split(".")):
        config = config.get(part) if isinstance(config, dict) else getattr(config, part, None)
    return config


def _replaced(config: Any, parts: list[str], value: Any) -> Any:
    if len(parts) > 1:
        inner = config.get(parts[0]) if isinstance(config, dict) else getattr(config, parts[0])
        value = _replaced(inner, parts[1:], value)
    if isinstance(config, dict):
        return {**config, parts[0]: value}
    return dataclasses.replace(config, **{parts[0]: value})


def load_search(file: str | Path, arguments: list[str]) -> tuple[SearchConfig, Recipe]:
    """Reads a search space file and the recipe that it names, with `key=value` arguments applied to either.

    Raises:
        UserError: A file is missing, an argument is no `key=value`, or a value breaks a rule.
    """
    file = Path(file)
    values = {"name": file.stem} | _read_yaml(file)
    if isinstance(values.get("recipe"), str):
        values["recipe"] = str((file.parent / values["recipe"]).resolve())
    return _search(values, file, arguments)


def search_of_one(recipe_folder: str | Path, arguments: list[str]) -> tuple[SearchConfig, Recipe]:
    """The search whose only trial is the recipe itself: a plain two-stage training."""
    folder = Path(recipe_folder).resolve()
    values = {
        "recipe": str(folder),
        "name": f"train-{folder.name}",
        "trial_scheduler": {"name": "fifo"},
        "workers": {"max_groups": 1},
    }
    return _search(values, folder, arguments)


def load_syncnet(file: str | Path, arguments: list[str]) -> SyncNetConfig:
    """Reads the file of a SyncNet's training, with `key=value` arguments applied.

    Raises:
        UserError: The file is missing, an argument is no `key=value`, or a value breaks a rule.
    """
    file = Path(file)
    node = _merged(SyncNetConfig, _read_yaml(file), {"": file})
    _resolve_paths(node, file.parent, _SYNCNET_SOURCES)
    config = _checked(SyncNetConfig, node, {"": file})
    if not arguments:
        return config
    for argument in arguments:
        key, value = _assignment(argument)
        node = _merged_into(node, _nested(key, value), {"": Path(f"argument {key}")}, named=True)
    _resolve_paths(node, Path.cwd(), _SYNCNET_SOURCES)
    return _checked(SyncNetConfig, node, {"": Path("argument")})


def _search(values: dict[str, Any], file: Path, arguments: list[str]) -> tuple[SearchConfig, Recipe]:
    """Splits `key=value` arguments between the search and its recipe, and validates both with the space."""
    search_keys = {f.name for f in dataclasses.fields(SearchConfig)}
    own: dict[str, Any] = {}
    recipe_overrides: dict[str, Any] = {}
    for argument in arguments:
        key, value = _assignment(argument)
        head, _, name = key.partition(".")
        if head in ("param_space", "overrides"):  # their own keys are dotted names, and a new value replaces the old
            mapping = values.get(head)
            values[head] = {**(mapping if isinstance(mapping, dict) else {}), name: value} if name else value
        else:
            (own if head in search_keys else recipe_overrides)[key] = value
    node = _merged(SearchConfig, values, {"": file})
    for key, value in own.items():
        node = _merged_into(node, _nested(key, value), {"": Path(f"argument {key}")}, named=True)
    search = _checked(SearchConfig, node, {"": file})
    recipe = load_recipe(search.recipe)
    recipe = with_overrides(recipe, search.overrides, f"{file}: overrides", file.parent)
    recipe = with_overrides(recipe, recipe_overrides, "argument")
    _check_search(search, recipe, file)
    _check_space(search, recipe, file)
    return search, recipe


def _assignment(argument: str) -> tuple[str, Any]:
    """Name and value of a `key=value` argument."""
    key, equals, text = argument.partition("=")
    if not equals or not key:
        raise UserError(f"argument {argument!r}: must be key=value; for example second_stage.optimizer.lr=1e-4")
    try:
        return key, _as_number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"argument {argument!r}: the value must be YAML: {_one_line(error)}") from None


def _check_search(search: SearchConfig, recipe: Recipe, file: Path) -> None:
    """What the search compares must be measured, and its scheduler must be able to stop a trial."""
    component = NEEDED_COMPONENTS.get(search.metric)
    if component and getattr(recipe.components, component) is None:
        raise UserError(f"{file}: metric: {search.metric} needs components.{component}; give it or choose another")
    every = recipe.second_stage.report_every_steps
    if search.trials.extend % every:
        rule = f"must be a multiple of second_stage.report_every_steps ({every})"
        raise UserError(f"{file}: trials.extend: {rule}, got {search.trials.extend}; move it to a report boundary")
    scheduler, longest = search.trial_scheduler, recipe.second_stage.num_steps
    if scheduler.time_attr == "global_step":
        longest += recipe.transition.max_step
    if scheduler.name == "asha" and scheduler.grace_period > longest:
        rule = f"must not be above the longest trial's {scheduler.time_attr} ({longest})"
        raise UserError(f"{file}: trial_scheduler.grace_period: {rule}, got {scheduler.grace_period}; lower it")


def _check_space(search: SearchConfig, recipe: Recipe, file: Path) -> None:
    """Every value that the space can name alone must give a valid recipe."""
    for key, space in search.param_space.items():
        where = f"{file}: param_space.{key}"
        kind = next(iter(space)) if isinstance(space, dict) and len(space) == 1 else None
        if kind not in _SPACE_KINDS:
            kinds = ", ".join(_SPACE_KINDS)
            raise UserError(f"{where}: must be one of {kinds} with its values, got {space!r}; e.g. {{grid: [1, 2]}}")
        values = space[kind]
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: {kind} must be a list of values, got {values!r}; e.g. {{{kind}: [1, 2]}}")
        if kind in ("uniform", "loguniform", "randint"):
            numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
            if len(values) != 2 or not numbers or values[0] >= values[1]:
                raise UserError(f"{where}: {kind} must be [low, high] with low < high, got {values!r}")
            if kind == "loguniform" and values[0] <= 0:
                raise UserError(f"{where}: loguniform needs low above 0, got {values!r}; raise it")
            if kind == "randint" and not all(isinstance(v, int) for v in values):
                raise UserError(f"{where}: randint must be two whole numbers, got {values!r}")
            values = _draws(kind, *values)
        if key.split(".")[0] in ("data", "components", "validation", "training"):
            raise UserError(f"{where}: must stay the same for all trials, else they cannot be compared; remove it")
        for value in values:
            with_overrides(recipe, {key: value}, f"{file}: param_space")


def _draws(kind: str, low: float, high: float) -> list[float]:
    """The bounds of a range, and a value between: a rule may hold at the bounds alone."""
    return [low, min(low + 1, high - 1), high - 1] if kind == "randint" else [low, low + (high - low) / 3, high]


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        node = OmegaConf.load(file)
        values = OmegaConf.to_container(node, resolve=True)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; create it or name another") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({_one_line(error)}); name a YAML file") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file}: must be valid YAML: {_one_line(error)}; mend it there") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: must be a mapping of names to values, got {values!r}")
    for key in values:
        if not isinstance(key, str):
            raise UserError(f"{file}: names must be text, got {key!r}; see latentsync_ray/config.py for the fields")
    return {str(key): _as_number(value) for key, value in values.items()}


def _as_number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as a string; numbers written so are meant as numbers."""
    if isinstance(value, dict):
        return {key: _as_number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_number(item) for item in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _merged(schema: type[_Config], values: dict[str, Any], origins: dict[str, Path]) -> DictConfig:
    return _merged_into(OmegaConf.structured(schema), values, origins)


def _merged_into(
    node: DictConfig, values: dict[str, Any], origins: dict[str, Path], named: bool = False
) -> DictConfig:
    try:
        merged = OmegaConf.merge(node, values)
        OmegaConf.to_object(merged) if not named else None
    except (OmegaConfBaseException, TypeError) as error:
        key = str(getattr(error, "full_key", None) or "") or _culprit(node, values)
        file, inner = _origin(key, origins)
        where = str(file) if named or not inner else f"{file}: {inner}"
        reason, value = _one_line(error).rstrip("."), _value_at(values, key)
        if not (value is None or str(value) in reason or isinstance(error, ConfigKeyError)):
            reason += f", got {value!r}"
        fields = OmegaConf.get_type(node).__module__.replace(".", "/")
        raise UserError(f"{where}: {reason}; see {fields}.py for the fields") from None
    assert isinstance(merged, DictConfig)
    return merged


def _culprit(node: DictConfig, values: dict[str, Any], prefix: str = "") -> str:
    """Dotted name of the first value that does not fit, for errors in which OmegaConf names none."""
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else name
        try:
            OmegaConf.merge(node, _nested(key, value))
        except (OmegaConfBaseException, TypeError):
            return _culprit(node, value, key) if isinstance(value, dict) else key
    return prefix


def _value_at(values: Any, key: str) -> Any:
    """The plain value of a dotted name; None for a mapping or if there is none."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return None if isinstance(values, dict) else values


def _checked(schema: type[_Config], node: DictConfig, origins: dict[str, Path]) -> _Config:
    try:
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        file, inner = _origin(str(getattr(error, "full_key", None) or ""), origins)
        raise UserError(f"{file}: {inner}: {_one_line(error)}") from None
    assert isinstance(config, schema)
    for key, rule, remedy in _all_complaints(config):
        file, inner = _origin(key, origins)
        value = OmegaConf.select(node, key)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        raise UserError(f"{file}: {inner}: {rule}, got {value!r}; {remedy}")
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
    """Makes the folder of the data and the networks' sources that are paths absolute; hub ids stay as they are."""
    for key in ("data.folder", *sources):
        value = OmegaConf.select(node, key)
        if isinstance(value, str) and (is_path(value, base) or key == "data.folder"):
            section, _, _ = key.rpartition(".")
            for frozen in (node, OmegaConf.select(node, section) if section else node):
                OmegaConf.set_readonly(frozen, False)
            OmegaConf.update(node, key, str(_absolute(value, base)))


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


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(useful) or type(error).__name__


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
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
