"""One two-stage training through the same engine: `latentsync-ray train configs/demo [key=value ...]`.

The same command goes on from where it was stopped. `--from KEY` goes on from a stored segment under the recipe's
settings.
"""

from __future__ import annotations

import dataclasses

from latentsync_ray.api import Search
from latentsync_ray.cli import run_cli
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.searchfiles import search_of_one
from latentsync_ray.tune import run
from latentsync_ray.usage import SEARCH_STATUSES, CommandParser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and trains. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    search, recipe = search_of_one(options.recipe, options.overrides)
    if options.stage and not options.start_from:
        raise UserError("--stage: needs a segment to go on from; add --from KEY")
    if options.start_from:
        search = dataclasses.replace(search, start_from=options.start_from, start_stage=options.stage)

    return run(Search(search, recipe))


def parser() -> CommandParser:
    """The command's arguments."""
    made = CommandParser(
        "train",
        "RECIPE [key=value ...] [options]",
        "One two-stage training through the same engine. The same command goes on from\nwhere it was stopped.",
        ("configs/demo", "configs/demo --from KEY second_stage.num_steps=80"),
        SEARCH_STATUSES,
    )
    made.add_argument("recipe", metavar="RECIPE", help="a folder such as configs/demo")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="values of the recipe")
    made.add_argument(
        "--from",
        dest="start_from",
        metavar="KEY",
        help="go on from a stored segment",
    )
    made.add_argument("--stage", choices=["second_stage"], help="leave stage one there, whatever the transition says")
    return made


if __name__ == "__main__":
    run_cli(main)
