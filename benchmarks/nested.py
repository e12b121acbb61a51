"""The documented way to tune a Ray Train run: a TorchTrainer inside every Tune trial, each training from step 0.

After Ray's guide "Hyperparameter Tuning with Ray Tune" for Ray Train: a driver function per trial, which makes a
TorchTrainer whose metrics TuneReportCallback hands on. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

from latentsync_ray.cluster.connection import cluster  # sets what Ray reads when it is imported

# isort: split
import ray
import ray.train
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.basic_variant import BasicVariantGenerator

from latentsync_ray.config.loading import with_overrides
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.engine.determinism import make_deterministic
from latentsync_ray.latentsync.inputs import ready_inputs
from latentsync_ray.search.suggestions import tune_domain
from latentsync_ray.store import Store


def train_loop(config: dict[str, Any]) -> None:
    """Both stages of one trial, with the same validation at the same boundaries as ours."""
    import torch

    from latentsync_ray.latentsync.data.clips import PreparedClips
    from latentsync_ray.latentsync.stage import Stages, StagesSetup

    recipe = config["recipe"]
    torch.set_num_threads(recipe.first_stage.num_threads)
    make_deterministic()
    training = Stages(
        StagesSetup(
            PreparedClips.open(recipe.data.folder),
            recipe.components,
            recipe.validation,
            recipe.data.num_frames,
            recipe.seed,
            torch.device("cpu"),
        )
    )
    transition, total_seconds, switch_seconds = recipe.transition.at_step, 0.0, None
    ends = {"first_stage": transition, "second_stage": transition + recipe.second_stage.num_steps}
    start, state = 0, None
    for stage, end in ends.items():
        stage_config = getattr(recipe, stage)
        training.build(stage, stage_config, state, "first_stage")
        for step in range(start, end):
            switch_seconds = switch_seconds or time.time() - config["started"]
            began = time.perf_counter()
            training.step(step, step - start)
            total_seconds += time.perf_counter() - began
            if (step + 1 - start) % stage_config.report_every_steps == 0:
                metrics = training.validate()
                took = {"train_seconds": total_seconds, "switch_seconds": switch_seconds}
                ray.train.report({**metrics, "global_step": step + 1, **took})
        start, state = end, training.state()


def drive(config: dict[str, Any], recipe: Any, scratch: str) -> None:
    """One trial."""
    TorchTrainer(
        train_loop,
        train_loop_config={"recipe": with_overrides(recipe, config), "started": time.time()},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=ray.tune.get_context().get_trial_id(), storage_path=scratch, callbacks=[TuneReportCallback()]
        ),
    ).fit()


def main() -> None:
    """Runs all trials of a search space, two at a time."""
    file, *arguments = sys.argv[1:]
    started = time.monotonic()
    search, recipe = load_search(file, arguments)
    with cluster(), tempfile.TemporaryDirectory() as scratch:
        recipe = ready_inputs(recipe, Store(scratch)).recipe
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(drive, recipe=recipe, scratch=scratch), {"CPU": 0, "memory": 2**28}
            ),
            param_space={name: tune_domain(space) for name, space in search.param_space.items()},
            tune_config=tune.TuneConfig(
                search_alg=BasicVariantGenerator(
                    max_concurrent=search.workers.max_groups, random_state=search.sampling_seed
                ),
            ),
            run_config=tune.RunConfig(name="nested", storage_path=scratch, verbose=0),
        )
        results = tuner.fit()
        errors = [str(error) for error in results.errors]
        assert not errors, errors
        trials = [
            {
                "parameters": {name: result.config[name] for name in search.param_space},
                "val/objective_terms": {n: v for n, v in result.metrics.items() if n.startswith("val/")},
                "global_step": result.metrics["global_step"],
                "train_seconds": result.metrics["train_seconds"],
                "switch_seconds": result.metrics["switch_seconds"],
            }
            for result in results
        ]
    print(json.dumps({"wall_seconds": time.monotonic() - started, "trials": trials}))


if __name__ == "__main__":
    main()
