"""What a store holds, whether it is whole, and which states nobody needs any more.

A state is needed if a search in the store refers to it: as the last of one of its trials, or as a stage-one boundary
from which a trial may branch (at `transition.min_step` or after). So deleting a search's folder lets go of its
states. What a search that has not ended refers to is not known: as long as there is one, running or interrupted,
every state is needed. A search says that it has begun before it looks for its first segment, and says what it refers
to when it ends (`trials.json`). A search that runs drops what its trials have passed, but nothing that searches refer
to which have ended, and nothing at all while another one runs in the store, whose trials may be there. Records are
kept for ever; a dropped state that is asked for again is trained again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.recipe import FIRST_STAGE
from latentsync_ray.core.atomic import TEMPORARY
from latentsync_ray.core.record import Record
from latentsync_ray.store import SPENT_FILE, TRIALS_FILE, DamagedEntryError, Store
from latentsync_ray.store.segments import PARTIAL_FILES, PREVIEW_FILE, RECORD_FILE, STATE_FILE

_SILENT_SECONDS = 60.0
"""A search of which so long nothing was heard was killed; it notes every few seconds what it has spent."""


def whole_records(store: Store) -> dict[str, Record]:
    """All records that are what was written, by key; from step 0 on."""
    records = {}
    for name in store.files("segments"):
        key = name.split("/")[1]
        with contextlib.suppress(DamagedEntryError):
            if name.endswith("/record.json") and (record := store.read_record(key)) is not None:
                records[key] = record

    def place(key: str) -> tuple[str, int, str]:
        segment = records[key].segment
        return segment.stage, segment.end_step, key

    return {key: records[key] for key in sorted(records, key=place)}


def lineage(records: dict[str, Record], prefix: str) -> list[str]:
    """Keys from the first segment to the one whose key begins so.

    Raises:
        UserError: There is none, or there are several.
    """
    found = [key for key in records if key.startswith(prefix)]
    if len(found) != 1:
        rule = (
            f"{len(found)} segments begin so; give more of it" if found else "no segment begins so; list shows them"
        )
        raise UserError(f"KEY: must name one segment, got {prefix}: {rule}")
    keys = found
    while (parent := records[keys[0]].segment.parent) in records:
        keys = [parent, *keys]
    return keys


def damages(store: Store) -> Iterator[str]:
    """A line for every stored file that is not what was written, or that its record promises and is gone."""
    for folder in ("segments", "searches", "syncnets"):
        for name in store.files(folder):
            if name.endswith("/record.json"):
                yield from _damage(store.read_record, name.split("/")[1])
            elif name.endswith(".json"):
                yield from _damage(store.read_json, name)
    for record in whole_records(store).values():
        yield from _damage(store.read_preview, record)
        if record.state.kept:
            yield from _damage(_check_state, store, record)


def _damage(check: Callable[..., object], *arguments: Any) -> list[str]:
    try:
        check(*arguments)
    except DamagedEntryError as error:
        return [str(error)]
    return []


def _check_state(store: Store, record: Record) -> None:
    try:
        store.check_state(record)
    except DamagedEntryError:
        if store.read_record(record.key) == record:  # a search that runs may have dropped or replaced it meanwhile
            raise


def needed_states(store: Store, keep_best: bool) -> set[str]:
    """Keys of the states that searches refer to.

    Args:
        store: With the searches.
        keep_best: Of each search only its best trial's: at its end, and where it left stage one.

    Raises:
        UserError: A search has not ended.
    """
    needed: set[str] = set()
    for search in store.list_folders("searches"):
        place = f"{store.root}/searches/{search}"
        try:
            values = store.read_json(f"searches/{search}/{TRIALS_FILE}")
        except DamagedEntryError as error:
            raise UserError(
                f"{error}, so any state may be needed; run its command again, or delete {place}"
            ) from None
        if values is None or not values["trials"]:
            raise UserError(
                f"{place}: has not ended, so any state may be needed; let it end (after a stop by its command "
                "again), or delete the folder"
            )
        needed |= _references(values, keep_best)
    return needed


def _references(values: dict[str, Any], keep_best: bool) -> set[str]:
    """Keys of the states that an ended search refers to, by its TRIALS_FILE."""
    referred: set[str] = set()
    for trial in values["trials"]:
        results = trial["results"]
        boundaries = [result for result in results if result["stage"] == FIRST_STAGE]
        if keep_best:
            kept = boundaries[-1:] + results[-1:] if trial["number"] == values["best"] else []
        else:
            branches = [b for b in boundaries if b["global_step"] >= values["keep_first_stage_from"]]
            kept = branches + results[-1:]
        referred |= {result["key"] for result in kept}
    return referred


def states_of_others(store: Store, own: str) -> set[str]:
    """Keys of the states that the other searches in the store refer to, those that have ended.

    Args:
        store: With the searches.
        own: Folder below the store's root of the search that asks.

    Raises:
        DamagedEntryError: What one of them refers to is not known.
        StorageError: The place is gone.
    """
    referred: set[str] = set()
    for name in store.list_folders("searches"):
        values = None if f"searches/{name}" == own else store.read_json(f"searches/{name}/{TRIALS_FILE}")
        if values is not None:
            referred |= _references(values, keep_best=False)
    return referred


def others_running(store: Store, own: str) -> list[str]:
    """Names of the other searches in the store that run now.

    Args:
        store: With the searches.
        own: Folder below the store's root of the search that asks, which has just noted what it has spent.

    Raises:
        StorageError: The place is gone.
    """
    folders = [f"searches/{name}" for name in store.list_folders("searches")]
    heard = store.modified([f"{folder}/{SPENT_FILE}" for folder in folders])
    now = heard.get(f"{own}/{SPENT_FILE}", 0.0)
    running = []
    for folder in folders:
        if folder == own or heard.get(f"{folder}/{SPENT_FILE}", 0) < now - _SILENT_SECONDS:
            continue
        try:
            values = store.read_json(f"{folder}/{TRIALS_FILE}")
        except DamagedEntryError:
            values = None
        if values is None or not values["trials"]:
            running.append(folder.removeprefix("searches/"))
    return running


def unneeded_states(records: dict[str, Record], needed: set[str]) -> list[str]:
    """Keys of kept states that are not needed."""
    return [key for key, record in records.items() if record.state.kept and key not in needed]


def leftovers(store: Store, records: dict[str, Record]) -> dict[str, int]:
    """Bytes of what is left behind, by name.

    Killed writers leave half-written files, whatever the library that wrote them has called them, and states that no
    record promises; and there is what was kept of segments that were finished since.
    """
    files = store.files("segments")
    left = {name: size for name, size in store.files("searches").items() if name.endswith(TEMPORARY)}
    for name, num_bytes in files.items():
        _, key, file = name.split("/", 2)
        damaged = key not in records and f"segments/{key}/record.json" in files  # nobody knows what it promises
        promised = key in records and records[key].state.kept
        outlived = file in PARTIAL_FILES and key in records
        unknown = file not in (RECORD_FILE, STATE_FILE, PREVIEW_FILE, *PARTIAL_FILES) and not (
            file.startswith("executions/") and file.endswith(".json")
        )
        if unknown or outlived or (file == STATE_FILE and not promised and not damaged):
            left[name] = num_bytes
    return left
