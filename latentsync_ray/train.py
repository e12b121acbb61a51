"""One two-stage training through the same engine: `python -m latentsync_ray.train configs/demo [key=value ...]`.

The same command goes on from where it was stopped.
"""

from __future__ import annotations

import argparse

from latentsync_ray.cli import run_cli
from latentsync_ray.configfiles import search_of_one


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and trains. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m latentsync_ray.train", description=__doc__)
    parser.add_argument("recipe", help="a folder such as configs/demo")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the recipe")
    options = parser.parse_args(arguments)
    search, recipe = search_of_one(options.recipe, options.overrides)

    from latentsync_ray.launch import launch  # Ray and torch take seconds, which a mistyped key need not

    return launch(search, recipe)


if __name__ == "__main__":
    run_cli(main)
