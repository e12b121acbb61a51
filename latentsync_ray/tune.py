"""The main command: `latentsync-ray tune search_spaces/transition.yaml [key=value ...]`."""

from __future__ import annotations

from latentsync_ray.api import Search
from latentsync_ray.cli import run_cli
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.fields import fields_of
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.config.shown import shown_search
from latentsync_ray.config.trainings import recipe_type
from latentsync_ray.usage import SEARCH_STATUSES, CommandParser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and runs the search. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    file, overrides = options.search_space, options.overrides
    if options.fields:
        _print_fields(recipe_type(Recipe.training) if file is None else type(load_search(file, overrides)[1]))
        return 0
    if file is None:
        raise UserError("tune: needs a search space; name a file such as search_spaces/transition.yaml")
    if options.show:
        print(shown_search(file, overrides))
        return 0
    return run(Search(*load_search(file, overrides)))


def parser() -> CommandParser:
    """The command's arguments."""
    made = CommandParser(
        "tune",
        "SPACE [key=value ...] [options]",
        "Searches when to leave stage one, and which learning rate stage two needs. The\n"
        "same command goes on from where it was stopped, and trains nothing twice.",
        ("search_spaces/transition.yaml", "SPACE second_stage.num_steps=80    # any field can be given"),
        SEARCH_STATUSES,
    )
    made.add_argument("search_space", nargs="?", metavar="SPACE", help="a file such as search_spaces/transition.yaml")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="values of the search or of its recipe")
    made.add_argument("--fields", action="store_true", help="list all fields (of SPACE's training) and end")
    made.add_argument("--show", action="store_true", help="print the search with its recipe, merged, and end")
    return made


def run(search: Search) -> int:
    """Runs a search and says where its results are. Returns the exit status."""
    results = search.run()
    print(f"results: {results.folder}", flush=True)  # the last line: until here Ray may print one of its own
    return results.exit_status


def _print_fields(recipe: type[Recipe]) -> None:
    print("The search, a file such as search_spaces/transition.yaml:\n")
    print(*fields_of(SearchConfig), sep="\n")
    print("\nIts recipe, a folder such as configs/demo (stages have their own files in it):\n")
    print(*fields_of(recipe), sep="\n")


if __name__ == "__main__":
    run_cli(main)
