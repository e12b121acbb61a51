"""Users' mistakes in recipes and arguments."""

import math

from mistakes import (
    BOUNDARY,
    FIRST,
    RECIPE,
    SECOND,
    SECRET,
    SPACE,
    TRAIN,
    TUNE,
    Mistake,
    append,
    put,
    remove,
    space,
    write,
)

LR = "second_stage.optimizer.lr"

# 77 and 99991 are multiples of no interval between reports that anybody would choose.
RECIPE_MISTAKES = [
    # Files
    Mistake("no recipe folder", "train configs/nowhere", ("configs/nowhere", "no such recipe folder")),
    Mistake("no stage file", TRAIN, (SECOND, "no such file"), remove(SECOND)),
    Mistake("stage in the wrong file", TRAIN, (RECIPE, "second_stage", SECOND), append(RECIPE, "second_stage: {}\n")),
    Mistake("invalid YAML", TRAIN, (FIRST, "valid YAML", "line 3"), write(FIRST, "a: 1\nloss: [1, 2\nx: y\n")),
    Mistake("key given twice", TRAIN, (RECIPE, "duplicate key seed"), append(RECIPE, "seed: 1\n")),
    Mistake("list for a mapping", TRAIN, (FIRST, "mapping", "[1, 2]"), write(FIRST, "[1, 2]\n")),
    Mistake("binary file", TRAIN, (SECOND, "cannot be read"), write(SECOND, bytes(range(256)))),
    Mistake(
        "object for a value", TRAIN, (RECIPE, "valid YAML"), append(RECIPE, "training: !!python/name:os.system\n")
    ),
    Mistake("bytes for a value", TRAIN, (RECIPE, "text or numbers"), append(RECIPE, "training: !!binary aGk=\n")),
    Mistake("list in itself", TRAIN, (RECIPE, "in itself"), append(RECIPE, "training: &a [*a]\n")),
    Mistake("name that is a number", TRAIN, (RECIPE, "names must be text, got 7"), append(RECIPE, "7: 1\n")),
    # Values of a recipe
    Mistake("unknown key", TRAIN, (FIRST, "learning_rate"), put(FIRST, "learning_rate", value=1)),
    Mistake("unknown nested key", TRAIN, (FIRST, "optimizer.rate"), put(FIRST, "optimizer", "rate", value=1)),
    Mistake("missing value", TRAIN, (RECIPE, "data.folder", "missing"), put(RECIPE, "data", "folder", value=None)),
    Mistake("wrong type", TRAIN, (FIRST, "batch_size", "'four'"), put(FIRST, "batch_size", value="four")),
    Mistake("number for a section", TRAIN, (FIRST, "loss:", "3"), put(FIRST, "loss", value=3)),
    Mistake("negative lr", TRAIN, (FIRST, "optimizer.lr", "-0.5"), put(FIRST, "optimizer", "lr", value=-0.5)),
    Mistake(
        "lr that is no number", TRAIN, (FIRST, "optimizer.lr", "nan"), put(FIRST, "optimizer", "lr", value=math.nan)
    ),
    Mistake("zero batch", TRAIN, (FIRST, "batch_size", "got 0"), put(FIRST, "batch_size", value=0)),
    Mistake(
        "uneven shares", TRAIN, (FIRST, "batch_size", "num_workers (99991)"), put(FIRST, "num_workers", value=99991)
    ),
    Mistake(
        "betas of wrong length",
        TRAIN,
        (FIRST, "optimizer.betas", "[0.9]"),
        put(FIRST, "optimizer", "betas", value=[0.9]),
    ),
    Mistake("unknown dtype", TRAIN, (FIRST, "dtype", "float16", "bfloat16"), put(FIRST, "dtype", value="float8")),
    Mistake(
        "schedule without end",
        TRAIN,
        (FIRST, "num_training_steps", "cosine"),
        put(FIRST, "lr_scheduler", value={"name": "cosine"}),
    ),
    Mistake(
        "bound off the boundary",
        TRAIN,
        (RECIPE, "transition.min_step", BOUNDARY, "77"),
        put(RECIPE, "transition", "min_step", value=77),
    ),
    Mistake(
        "at_step above max_step", f"{TRAIN} transition.at_step=99991", ("transition.at_step", "max_step", "99991")
    ),
    Mistake(
        "patience off the boundary",
        TRAIN,
        (RECIPE, "plateau.patience_steps", BOUNDARY, "77"),
        put(RECIPE, "transition", "plateau", "patience_steps", value=77),
    ),
    Mistake(
        "length off the boundary", TRAIN, (SECOND, "num_steps", BOUNDARY, "77"), put(SECOND, "num_steps", value=77)
    ),
    Mistake(
        "unknown metric of a plateau",
        TRAIN,
        (RECIPE, "plateau.metric", "val/loss"),
        put(RECIPE, "transition", "plateau", "metric", value="val/loss"),
    ),
    Mistake(
        "no loss at all", TRAIN, (FIRST, "loss.recon", "positive", "0.0"), put(FIRST, "loss", value={"recon": 0})
    ),
    Mistake("negative weight", TRAIN, (SECOND, "loss.sync", "-0.05"), put(SECOND, "loss", "sync", value=-0.05)),
    Mistake("negative seed", f"{TRAIN} seed=-1", ("seed", "negative", "-1")),
    Mistake(
        "samples longer than the clips", f"{TRAIN} data.num_frames=99991", ("data.num_frames", "synthetic", "99991")
    ),
    Mistake(
        "loss without its network",
        TRAIN,
        (RECIPE, "components.syncnet", "loss.sync"),
        put(RECIPE, "components", "syncnet", value=None),
    ),
    # Arguments
    Mistake("no value", f"{TUNE} seed", ("'seed'", "key=value")),
    Mistake(
        "unknown name", f"{TUNE} first_stage.optimizer.learning_rate=1", ("first_stage.optimizer.learning_rate",)
    ),
    Mistake("unknown name in the search", f"{TUNE} workers.num_gpus=1", ("workers.num_gpus",)),
    Mistake("text for a number", f"{TUNE} num_samples=many", ("num_samples", "'many'")),
    Mistake("value that is no YAML", f"{TUNE} 'seed=[1'", ("'seed=[1'", "YAML")),
    Mistake("date for a number", f"{TUNE} seed=2024-01-01", ("argument: seed", "'2024-01-01'")),
    Mistake("samples of a training", f"{TRAIN} num_samples=3", ("'num_samples=3'", "train", "the command tune")),
    Mistake("space of a training", f"{TRAIN} 'param_space.seed={{grid: [1]}}'", ("param_space.seed", "train")),
    Mistake("scheduler of a training", f"{TRAIN} trial_scheduler.name=asha", ("trial_scheduler.name", "train")),
    # What would be looked up elsewhere
    Mistake("lookup in a recipe", TRAIN, (RECIPE, "seed", SECRET), put(RECIPE, "seed", value=SECRET)),
    Mistake(
        "lookup deep in a stage", TRAIN, (FIRST, "model.a", SECRET), put(FIRST, "model", value={"a": [[SECRET]]})
    ),
    Mistake("lookup in a search", TUNE, (SPACE, "name", SECRET), put(SPACE, "name", value=SECRET)),
    Mistake("lookup in a space", TUNE, (SPACE, f"param_space.{LR}.grid", SECRET), space(LR, {"grid": [SECRET]})),
    Mistake(
        "lookup in an override",
        TUNE,
        (SPACE, "overrides.training", SECRET),
        put(SPACE, "overrides", "training", value=SECRET),
    ),
    Mistake("lookup in an argument", f"{TUNE} 'storage=a/{SECRET}'", ("storage", SECRET)),
    Mistake("lookup in a value of the recipe", f"{TUNE} 'components.vae={SECRET}'", ("components.vae", SECRET)),
    Mistake("lookup in a mapping", f"{TUNE} 'workers={{max_groups: {SECRET!r}}}'", ("workers", SECRET)),
    Mistake("lookup in a folder", f"train '{SECRET}'", (SECRET,), write(f"{SECRET}/recipe.yaml", "seed: 1")),
]
