"""Makes the report of a search from its folder, or one report of several searches.

latentsync-ray report results/searches/transition-1a2b3c4d
latentsync-ray report FOLDER FOLDER --output comparison.html
"""

from __future__ import annotations

from pathlib import Path

from latentsync_ray.cli import run_cli
from latentsync_ray.config.errors import UserError
from latentsync_ray.core.atomic import new_file
from latentsync_ray.usage import CommandParser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and writes the page. Returns the exit status."""
    options = parser().parse_args(arguments)
    print(f"report: {write(options.folders, options.output)}", flush=True)
    return 0


def parser() -> CommandParser:
    """The command's arguments."""
    made = CommandParser(
        "report",
        "FOLDER ... [options]",
        "Makes the report of a search that has ended, was interrupted or still runs,\nor one report of several.",
        ("results/searches/transition-1a2b3c4d", "FOLDER OTHER_FOLDER --output comparison.html"),
    )
    made.add_argument("folders", nargs="+", metavar="FOLDER", help="what a search has printed last")
    made.add_argument("--output", type=Path, metavar="FILE", help="where to; FOLDER/report.html, or ./report.html")
    return made


def write(folders: list[str], output: Path | None = None) -> str:
    """Writes the page of some searches.

    Args:
        folders: Folders or URIs that searches have printed.
        output: Where to; None for one search's own `report.html`, or that name in the working folder for several.

    Returns:
        Where it is.

    Raises:
        UserError: A folder holds no search, or the file cannot be written.
    """
    from latentsync_ray.report.compose import page_of, reported  # imports plotly, which takes a moment
    from latentsync_ray.report.origin import read_origin
    from latentsync_ray.report.page import page_html
    from latentsync_ray.report.report import PAGE_FILE
    from latentsync_ray.report.results import find_results
    from latentsync_ray.report.stored import read_stored

    places = [find_results(folder) for folder in folders]
    searches = [
        reported(store, folder, read_stored(store, folder, read_origin(store, folder).search))
        for store, folder in places
    ]
    content = page_html(page_of(searches)).encode()
    if output is None and len(places) == 1:
        (store, folder) = places[0]
        store.write_bytes(f"{folder}/{PAGE_FILE}", content)
        return store.uri_of(f"{folder}/{PAGE_FILE}")
    file = output or Path(PAGE_FILE)
    try:
        with new_file(file) as made:
            made.write_bytes(content)
    except OSError as error:
        raise UserError(f"--output: must be a file that can be written ({error}), got {file}; name another") from None
    return str(file)


if __name__ == "__main__":
    run_cli(main)
