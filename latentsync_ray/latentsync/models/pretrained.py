"""Networks from folders and hub ids, with all of their weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.utils import logging
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

_MOST_NAMES = 8


def load_pretrained(network_class: Any, source: str | Path, exact: bool = False) -> Any:
    """Loads a network of diffusers or transformers, either of which would draw at random what the weights lack.

    Args:
        network_class: Has `from_pretrained`.
        source: A folder or hub id.
        exact: Whether there may be no more weights than the network has, such as those of a head that it lacks.

    Raises:
        ValueError: Weights are missing or unexpected; names them.
        OSError: There is no such network.
    """
    with _only_errors():
        network, loading = network_class.from_pretrained(
            str(source), output_loading_info=True, low_cpu_mem_usage=False
        )
    for kind in ("missing", "unexpected") if exact else ("missing",):
        if names := sorted(loading[f"{kind}_keys"]):
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            raise ValueError(f"{kind}: {', '.join(names[:_MOST_NAMES])}{more}")
    return network


def hub_revision(source: str) -> str | None:
    """Returns the commit that a hub id stands for: the hub's newest, or without the hub that of its cache.

    Args:
        source: A hub id, `owner/name`.

    Returns:
        The commit's hash; None if there is no such network on the hub or in the cache.
    """
    try:
        file = hf_hub_download(source, "config.json")
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        return None
    return Path(file).parent.name  # snapshots/COMMIT/config.json


@contextmanager
def _only_errors() -> Iterator[None]:
    """Keeps diffusers from warning of every field of a config that it does not know."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
