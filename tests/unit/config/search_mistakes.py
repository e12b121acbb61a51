"""Users' mistakes in search spaces and storages."""

from mistakes import BOUNDARY, SPACE, TRAIN, TUNE, Mistake, put, space, write

AT_STEP, LR = "transition.at_step", "second_stage.optimizer.lr"
NUM_STEPS, EVERY = "second_stage.num_steps", "second_stage.report_every_steps"

SEARCH_MISTAKES = [
    # Search spaces
    Mistake("no search space", "tune search_spaces/nowhere.yaml", ("search_spaces/nowhere.yaml", "no such file")),
    Mistake("no recipe named", TUNE, (SPACE, "recipe", "missing"), put(SPACE, "recipe", value=None)),
    Mistake("parameters in a list", TUNE, (SPACE, "param_space", "[1, 2]"), put(SPACE, "param_space", value=[1, 2])),
    Mistake("unknown parameter", TUNE, (SPACE, "transition.at_stop"), space("transition.at_stop", {"grid": [1]})),
    Mistake("unknown kind", TUNE, (SPACE, f"param_space.{AT_STEP}", "'sample'"), space(AT_STEP, {"sample": [1]})),
    Mistake("nothing to choose from", TUNE, (SPACE, f"param_space.{AT_STEP}", "[]"), space(AT_STEP, {"grid": []})),
    Mistake("reversed range", TUNE, (SPACE, f"param_space.{LR}", "[2, 1]"), space(LR, {"uniform": [2, 1]})),
    Mistake("logarithm of 0", TUNE, (SPACE, f"param_space.{LR}", "[0, 0.1]"), space(LR, {"loguniform": [0, 0.1]})),
    Mistake(
        "fractions of a step",
        TUNE,
        (SPACE, "num_warmup_steps"),
        space("second_stage.lr_scheduler.num_warmup_steps", {"uniform": [0, 10]}),
    ),
    Mistake("invalid value among others", TUNE, (SPACE, LR, "-1"), space(LR, {"choice": [0.1, -1]})),
    Mistake(
        "seed of a population",
        f"{TUNE} trial_scheduler.name=pbt",
        (SPACE, "param_space.seed", "pbt"),
        space("seed", {"choice": [0, 1]}),
    ),
    Mistake(
        "parameter of the data", TUNE, (SPACE, "param_space.data.num_frames"), space("data.num_frames", {"grid": [8]})
    ),
    Mistake(
        "parameter of the networks",
        TUNE,
        (SPACE, "param_space.components.vae"),
        space("components.vae", {"grid": ["a/b"]}),
    ),
    Mistake("unknown metric", TUNE, (SPACE, "metric", "'loss'"), put(SPACE, "metric", value="loss")),
    Mistake(
        "unknown scheduler",
        TUNE,
        (SPACE, "trial_scheduler.name", "'median'"),
        put(SPACE, "trial_scheduler", value={"name": "median"}),
    ),
    Mistake(
        "values that do not go together",
        TUNE,
        (SPACE, "second_stage.num_steps", BOUNDARY, "(20)", "got 10"),
        put(SPACE, "param_space", value={NUM_STEPS: {"grid": [20, 10]}, EVERY: {"grid": [10, 20]}}),
    ),
    Mistake(
        "value that goes with no other",
        TUNE,
        (SPACE, "second_stage.num_steps", "got 77"),
        put(SPACE, "param_space", value={NUM_STEPS: {"choice": [20, 77]}, EVERY: {"choice": [10, 20]}}),
    ),
    Mistake(
        "parameter within another",
        TUNE,
        (SPACE, "param_space.transition.plateau.patience_steps", "(transition.plateau)"),
        put(
            SPACE,
            "param_space",
            value={"transition.plateau": {"grid": [None]}, "transition.plateau.patience_steps": {"grid": [40]}},
        ),
    ),
    Mistake("nothing for optuna", f"{TUNE} search_alg=optuna param_space={{}}", (SPACE, "search_alg", "param_space")),
    Mistake("grid for maximin", f"{TUNE} search_alg=maximin", (SPACE, "search_alg", "choices")),
    Mistake("very long name", f"{TUNE} name={'x' * 300}", ("name", "200", "x" * 300)),
    Mistake(
        "recipe in a home that holds none", TUNE, ("nowhere", "no such"), put(SPACE, "recipe", value="~/nowhere")
    ),
    Mistake(
        "home of nobody",
        TUNE,
        (SPACE, "recipe", "'~nobody-at-all/x'"),
        put(SPACE, "recipe", value="~nobody-at-all/x"),
    ),
    Mistake(
        "argument that fixes what is searched",
        f"{TUNE} 'transition={{at_step: 400}}'",
        ("argument transition.at_step", f"param_space.{AT_STEP}"),
    ),
    Mistake(
        "override that fixes what is searched",
        TUNE,
        (SPACE, "overrides second_stage.optimizer", f"param_space.{LR}"),
        put(SPACE, "overrides", "second_stage.optimizer", value={"lr": 0.1}),
    ),
    Mistake("rung that no trial reaches", f"{TUNE} trial_scheduler.grace_period=99991", ("grace_period", "99991")),
    # Storage
    Mistake("file for a storage", f"{TRAIN} storage=LICENSE", ("storage LICENSE", "file"), write("LICENSE", "mine")),
    Mistake(
        "storage below a file",
        f"{TRAIN} storage=LICENSE/runs",
        ("storage LICENSE/runs", "Not a directory"),
        write("LICENSE", "mine"),
    ),
    Mistake("storage of nobody", f"{TRAIN} storage=~nobody-at-all/x", ("storage ~nobody-at-all/x",)),
    Mistake("unknown kind of storage", f"{TRAIN} storage=ftp://host/runs", ("storage ftp://host/runs",)),
    Mistake("nobody's home", "train configs/demo data.folder=~nobody1/x", ("data.folder", "~nobody1/x")),
]
