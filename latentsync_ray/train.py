"""One two-stage training through the same engine: `latentsync-ray train configs/demo [key=value ...]`.

The same command goes on from where it was stopped. `--from KEY` goes on from a stored segment under the recipe's
settings.
"""

from __future__ import annotations

import argparse
import dataclasses

from latentsync_ray.api import Search
from latentsync_ray.cli import program, run_cli
from latentsync_ray.config.searchfiles import search_of_one
from latentsync_ray.tune import run


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and trains. Returns the exit status."""
    parser = argparse.ArgumentParser(prog=program("train"), description=__doc__)
    parser.add_argument("recipe", help="a folder such as configs/demo")
    parser.add_argument("--from", dest="start_from", metavar="KEY", help="a stored segment to go on from")
    parser.add_argument(
        "--stage", choices=["second_stage"], help="leave stage one there, whatever the transition says"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the recipe")
    options = parser.parse_intermixed_args(arguments)
    search, recipe = search_of_one(options.recipe, options.overrides)
    if options.stage and not options.start_from:
        parser.error("--stage needs --from")
    if options.start_from:
        search = dataclasses.replace(search, start_from=options.start_from, start_stage=options.stage)

    return run(Search(search, recipe))


if __name__ == "__main__":
    run_cli(main)
