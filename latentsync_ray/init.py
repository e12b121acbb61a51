"""Writes a working folder with the shipped recipes and search spaces and the demo's networks.

latentsync-ray init FOLDER && cd FOLDER && latentsync-ray tune search_spaces/transition.yaml
"""

from __future__ import annotations

import shutil
from pathlib import Path

from latentsync_ray.cli import program, run_cli
from latentsync_ray.config.errors import UserError
from latentsync_ray.core.atomic import new_folder
from latentsync_ray.shipped import SHIPPED, shipped_files
from latentsync_ray.usage import CommandParser

_GITIGNORE = "/data/\n/results/\n"


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and writes the folder. Returns the exit status."""
    options = parser().parse_args(arguments)
    write_working_folder(options.folder)
    print(f"wrote {options.folder}; try: cd {options.folder} && {program('tune')} search_spaces/transition.yaml")
    return 0


def write_working_folder(folder: Path) -> None:
    """Copies what the package ships, and keeps data and results out of git. The folder appears at once.

    Raises:
        UserError: the folder holds something, or cannot be written.
    """
    if folder.resolve() == Path.cwd():  # it is replaced, so that the shell would stay in a folder that is gone
        raise UserError(f"{folder}: must not be the current folder; give the name of one to make in it")
    with new_folder(folder) as made:
        for name in SHIPPED:
            shutil.copytree(shipped_files() / name, made / name)
        (made / ".gitignore").write_text(_GITIGNORE)


def parser() -> CommandParser:
    """The command's arguments."""
    made = CommandParser(
        "init",
        "FOLDER",
        "Writes a working folder: recipes, search spaces and the demo's small networks.",
        (f"demo && cd demo &&\n    {program('tune')} search_spaces/transition.yaml",),
    )
    made.add_argument("folder", type=Path, metavar="FOLDER", help="a new or empty folder")
    return made


if __name__ == "__main__":
    run_cli(main)
