"""Writes the UNet of a trial, or of any stored segment, as a file for LatentSync's scripts or a diffusers folder.

latentsync-ray export RESULTS unet.pt
latentsync-ray export RESULTS unet.pt --segment KEY    # the beginning of a key is enough
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentsync_ray.cli import program, run_cli
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.plain import Settings
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.core.record import Record
from latentsync_ray.core.segment import Segment
from latentsync_ray.report.results import find_results
from latentsync_ray.report.trials_file import read_trials
from latentsync_ray.store import DamagedEntryError, Store
from latentsync_ray.store.lineage import find_record
from latentsync_ray.usage import CommandParser

if TYPE_CHECKING:
    from torch import Tensor


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and exports. Returns the exit status."""
    options = parser().parse_args(arguments)
    if options.segment is not None and (options.trial is not None or options.stage is not None):
        raise UserError("--segment: must stand alone, it names a state by itself; leave out --trial and --stage")
    if options.out.exists():
        raise UserError(f"{options.out}: must not exist yet; name another file or folder")
    segment, weights = stored_weights(options.results, options.trial, options.stage, options.segment)

    from latentsync_ray.latentsync.models.interop import OFFICIAL_SUFFIXES, write_diffusers, write_official

    if options.out.suffix in OFFICIAL_SUFFIXES:
        write_official(options.out, weights, segment.end_step)
    else:
        write_diffusers(options.out, model_of(segment), weights)
    print(f"wrote {options.out}")
    return 0


def model_of(segment: Segment) -> Settings:
    """The UNet's keyword arguments at a segment of LatentSync's."""
    model = segment.config["model"]
    assert isinstance(model, dict)
    return model


def stored_weights(
    results: str, trial: int | None = None, stage: str | None = None, segment: str | None = None
) -> tuple[Segment, dict[str, Tensor]]:
    """A trial's last segment, or the one asked for, and the model's state dict there.

    Args:
        results: The search's folder or URI.
        trial: The trial's number; None for the best.
        stage: At whose end; None for the last that the trial reached.
        segment: Key of a segment in the search's store, or its beginning; then trial and stage do not matter.

    Raises:
        UserError: There is no such trial or segment, or its state is no longer kept.
    """
    store, folder = find_results(results)
    try:
        record = _record(store, folder, trial, stage) if segment is None else find_record(store, segment, "--segment")
        if not record.state.kept:
            raise UserError(
                f"segment {record.key[:12]}: its state is no longer kept; export another segment "
                f"({program('store')} {store.uri} list shows whose are)"
            )
        state = store.read_state(record.key, record.state.sha256)
    except DamagedEntryError as error:
        raise UserError(
            f"{error}; delete that segment's folder and run the search again, which trains it anew"
        ) from None
    weights = {name[len("model.") :]: tensor for name, tensor in state.items() if name.startswith("model.")}
    return record.segment, weights


def _record(store: Store, folder: str, trial: int | None, stage: str | None) -> Record:
    """The record of the last segment of a trial, or of a stage of it."""
    found = read_trials(store, folder)
    if found is None:
        raise UserError(f"{store.uri_of(folder)}: has no results yet; let the search end")
    trials, best = found
    keys = {reached.number: reached.key for reached in trials if reached.key is not None}
    if trial is None and best is not None:
        trial = best.number
    if trial is None:
        raise UserError(f"{store.uri_of(folder)}: no trial of it has a result; name another search")
    if trial not in keys:
        raise UserError(f"--trial: must be one of {', '.join(str(number) for number in keys)}, got {trial}")
    record = store.read_record(keys[trial])
    while record is not None and stage is not None and record.segment.stage != stage:
        record = store.read_record(record.segment.parent)
    if record is None:
        raise UserError(f"--stage: trial {trial} has not been in {stage}; choose the other one")
    return record


def parser() -> CommandParser:
    """The command's arguments."""
    made = CommandParser(
        "export",
        "RESULTS OUT [options]",
        "Writes the UNet of a trial, or of any stored segment.",
        (
            "RESULTS unet.pt                  # the best trial",
            "RESULTS unet --trial 3           # a folder",
            "RESULTS unet.pt --segment KEY    # any segment",
        ),
    )
    made.add_argument("results", metavar="RESULTS", help="the folder or URI that a search has printed last")
    made.add_argument("out", type=Path, metavar="OUT", help="a .pt file for LatentSync's scripts, or a new folder")
    made.add_argument("--trial", type=int, metavar="N", help="number of the trial (the best)")
    made.add_argument(
        "--stage",
        choices=(FIRST_STAGE, SECOND_STAGE),
        metavar="S",
        help=f"at the end of {FIRST_STAGE} or {SECOND_STAGE} (the last)",
    )
    made.add_argument("--segment", metavar="KEY", help="a segment instead; a key's beginning is enough")
    return made


if __name__ == "__main__":
    run_cli(main)
