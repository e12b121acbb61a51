"""Searches from Python: `search = load_search(FILE)`, `results = search.run()`. The commands use the same.

Light to import: Ray, torch and pandas are loaded by what needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentsync_ray.config import searchfiles
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig

if TYPE_CHECKING:
    from latentsync_ray.planning.plan import Plan
    from latentsync_ray.report.results import Results


@dataclass(frozen=True)
class Search:
    """A search that was read and checked, and can be run or planned."""

    config: SearchConfig
    """What is searched, and how."""
    recipe: Recipe
    """The recipe that trials vary."""

    def run(self) -> Results:
        """Runs the search, or goes on with it, on the Ray cluster that there is or on this machine.

        Ctrl-C, or the interruption of a notebook's kernel, ends it with everything kept; the same call goes on.

        Returns:
            The results, also where trials have failed or a budget was used up (`Results.exit_status`).

        Raises:
            UserError: Something is wrong with what the search asks for.
            KeyboardInterrupt: After an interruption.
        """
        from latentsync_ray.cluster.environment import set_ray_environment
        from latentsync_ray.search.display import Display

        set_ray_environment()  # before Ray is imported
        with Display() as display:
            from latentsync_ray.report.results import Results
            from latentsync_ray.search.launch import launch

            exit_status, folder = launch(self.config, self.recipe, display)
        return Results(folder, exit_status)

    def plan(self, transition_step: int | None = None) -> Plan:
        """What the search would train, without training anything.

        Args:
            transition_step: Where all trials leave stage one, where policies depend on metrics.

        Raises:
            UserError: A policy reads metrics, which nobody knows before.
        """
        from latentsync_ray.planning.plan import Plan, plan_trials

        return Plan(self.config, plan_trials(self.config, self.recipe, transition_step))


def load_search(file: str | Path, values: Mapping[str, Any] | None = None, **settings: Any) -> Search:
    """Reads a search space and the recipe that it names.

    Args:
        file: For example `search_spaces/transition.yaml`.
        values: Values of the search or its recipe by dotted name, such as `{"second_stage.num_steps": 80}`.
        settings: The same for names without a dot, such as `num_samples=4`.

    Raises:
        UserError: A file is missing, or a value breaks a rule.
    """
    return Search(*searchfiles.load_search(file, values={**(values or {}), **settings}))


def open_results(folder: str | Path) -> Results:
    """The results of a search that has ended, by the folder or URI that it printed.

    Raises:
        UserError: No search has ended there.
    """
    from latentsync_ray.report.results import Results

    results = Results(str(folder))
    len(results)  # reads them now, so that a wrong folder is told here
    return results
