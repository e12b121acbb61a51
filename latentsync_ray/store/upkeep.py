"""What a store holds, whether it is whole, and which states nobody needs any more.

A state is needed if a search in the store refers to it: as the last of one of its trials, or as a stage-one boundary
from which a trial may branch (at `transition.min_step` or after). So deleting a search's folder lets go of its
states. What a search that has not ended refers to is not known: as long as there is one, running or interrupted,
nothing is collected. Records are kept for ever; a dropped state that is asked for again is trained again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from latentsync_ray.config.errors import UserError
from latentsync_ray.core.atomic import TEMPORARY
from latentsync_ray.core.record import Record
from latentsync_ray.store import RAY_FOLDER, DamagedEntryError, Store
from latentsync_ray.store.searches import Phase, Searches
from latentsync_ray.store.segments import PARTIAL_FILES, PREVIEW_FILE, RECORD_FILE, STATE_FILE, TERMS_FILE


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
    for folder in ("segments", "searches", "syncnets", "probes"):
        for name in store.files(folder):
            if name.endswith("/record.json"):
                yield from _damage(store.read_record, name.split("/")[1])
            elif name.endswith(".json"):
                yield from _damage(store.read_json, name)
    for record in whole_records(store).values():
        yield from _damage(store.read_preview, record)
        yield from _damage(store.read_terms, record)
        if record.state.kept:
            yield from _damage(_check_state, store, record)


def _damage(check: Callable[..., object], *arguments: object) -> list[str]:
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


def needed_states(store: Store, keep_best: bool) -> dict[str, frozenset[str]]:
    """Keys of the states that each search refers to, by its name.

    Args:
        store: With the searches.
        keep_best: Of each search only its best trial's: at its end, and where it left stage one.

    Raises:
        UserError: A search has not ended.
    """
    try:
        searches = Searches(store).all()
    except DamagedEntryError as error:
        raise UserError(f"{error}, so any state may be needed; run its command again, or delete its folder") from None
    for search in searches:
        if search.phase is Phase.RUNNING:
            raise UserError(
                f"{store.root}/searches/{search.name}: has not ended, so any state may be needed; let it end (after "
                f"a stop by its command again), or give it up: --end {search.name}"
            )
    return {search.name: search.needed_by_best if keep_best else search.needed for search in searches}


def unneeded_states(records: dict[str, Record], needed: set[str]) -> list[str]:
    """Keys of kept states that are not needed."""
    return [key for key, record in records.items() if record.state.kept and key not in needed]


def leftovers(store: Store, records: dict[str, Record]) -> dict[str, int]:
    """Bytes of what is left behind, by name.

    Killed writers leave half-written files, whatever the library that wrote them has called them, and states that no
    record promises, and killed commands Ray's files; and there is what was kept of segments that were finished since.
    """
    files = store.files("segments")
    left = {name: size for name, size in store.files("searches").items() if name.endswith(TEMPORARY)}
    left |= {
        name: size
        for name, size in store.files(RAY_FOLDER).items()
        if name.startswith(f"{RAY_FOLDER}/latentsync_ray-")
    }
    for name, num_bytes in files.items():
        _, key, file = name.split("/", 2)
        damaged = key not in records and f"segments/{key}/record.json" in files  # nobody knows what it promises
        promised = key in records and records[key].state.kept
        outlived = file in PARTIAL_FILES and key in records
        unknown = file not in (RECORD_FILE, STATE_FILE, PREVIEW_FILE, TERMS_FILE, *PARTIAL_FILES) and not (
            file.startswith("executions/") and file.endswith(".json")
        )
        if unknown or outlived or (file == STATE_FILE and not promised and not damaged):
            left[name] = num_bytes
    return left
