"""The main command: `latentsync-ray tune search_spaces/transition.yaml [key=value ...]`."""

from __future__ import annotations

import argparse

from latentsync_ray.cli import program, run_cli
from latentsync_ray.config.searchfiles import load_search


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and runs the search. Returns the exit status."""
    parser = argparse.ArgumentParser(prog=program("tune"), description=__doc__)
    parser.add_argument("search_space", help="a file such as search_spaces/transition.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the search or of its recipe")
    options = parser.parse_args(arguments)
    search, recipe = load_search(options.search_space, options.overrides)

    from latentsync_ray.search.launch import launch  # Ray takes seconds, which a mistyped key need not

    return launch(search, recipe)


if __name__ == "__main__":
    run_cli(main)
