"""Two-stage diffusion training as a search on Ray in which trials share what they have in common."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("latentsync_ray")
except PackageNotFoundError:  # a checkout that is on the path and not installed
    __version__ = "unknown"
