"""Where the files are that come with the package: recipes, search spaces and the demo's networks."""

from pathlib import Path

SHIPPED = ("configs", "search_spaces", "assets/demo")
"""Folders that find each other by relative paths."""


def shipped_files() -> Path:
    """The folder that holds `SHIPPED`: in a checkout its top level, in an installed package `shipped` within it."""
    package = Path(__file__).resolve().parent
    installed = package / "shipped"  # written by the build (pyproject.toml)
    return installed if installed.is_dir() else package.parent
