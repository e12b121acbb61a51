"""The main command: `latentsync-ray tune search_spaces/transition.yaml [key=value ...]`."""

from __future__ import annotations

import argparse

from latentsync_ray.api import Search
from latentsync_ray.cli import program, run_cli
from latentsync_ray.config.searchfiles import load_search


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and runs the search. Returns the exit status."""
    parser = argparse.ArgumentParser(prog=program("tune"), description=__doc__)
    parser.add_argument("search_space", help="a file such as search_spaces/transition.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the search or of its recipe")
    options = parser.parse_args(arguments)
    return run(Search(*load_search(options.search_space, options.overrides)))


def run(search: Search) -> int:
    """Runs a search and says where its results are. Returns the exit status."""
    results = search.run()
    print(f"results: {results.folder}", flush=True)  # the last line: until here Ray may print one of its own
    return results.exit_status


if __name__ == "__main__":
    run_cli(main)
