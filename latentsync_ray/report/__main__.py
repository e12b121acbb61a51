"""Makes the report of a search from its folder, or one report of several searches.

latentsync-ray report results/searches/transition-1a2b3c4d
latentsync-ray report FOLDER FOLDER --output comparison.html

The search may have ended, been interrupted, or still run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from latentsync_ray.cli import program, run_cli
from latentsync_ray.config.errors import UserError
from latentsync_ray.core.atomic import new_file


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and writes the page. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=program("report"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a folder or URI that a search has printed")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write (a search's own report.html; report.html for several)",
    )
    options = parser.parse_args(arguments)
    print(f"report: {write(options.folders, options.output)}", flush=True)
    return 0


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
