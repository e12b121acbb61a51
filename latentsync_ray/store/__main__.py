"""Looks after a store: what it holds, a segment's lineage, whether all is whole, what can go.

latentsync-ray store STORAGE list [--metric val/sync]
latentsync-ray store STORAGE lineage KEY          # the beginning of a key is enough
latentsync-ray store STORAGE verify               # exit status 1 if something is damaged; changes nothing
latentsync-ray store STORAGE collect [--keep-best] [--drop]
latentsync-ray store STORAGE collect --end SEARCH # gives up a search that was interrupted: no state is kept for it
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from latentsync_ray.cli import run_cli
from latentsync_ray.config.errors import UserError
from latentsync_ray.core.record import Record
from latentsync_ray.store import Store
from latentsync_ray.store.searches import Searches
from latentsync_ray.store.upkeep import damages, leftovers, lineage, needed_states, unneeded_states, whole_records
from latentsync_ray.usage import STATUSES, CommandParser

_KEY_LENGTH = 12


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and does what it says. Returns the exit status."""
    options = parser().parse_args(arguments)

    store, console = Store(options.storage), Console(soft_wrap=True)
    if not store.files("segments"):
        raise UserError(f"{options.storage}: must be the storage of a search, holds no segments; correct it")
    if options.command == "verify":
        return _verify(store, console)
    if options.command == "collect" and (options.drop or options.end):
        store.check_writable()
    if options.command == "collect" and options.end:
        Searches(store).give_up(options.end)
        console.print(
            f"{options.end} is given up: collect no longer keeps states for it; its command goes on with it"
        )
        return 0
    records = whole_records(store)
    if len(records) < len(store.keys()):
        console.print("records that are damaged are left out: verify names them")
    if options.command == "collect":
        return _collect(store, console, records, options.keep_best, options.drop)
    keys = list(records) if options.command == "list" else lineage(records, options.key)
    console.print(_table(records, keys, options.metric))
    if options.command == "lineage":
        console.print(f"root {records[keys[0]].segment.parent}")
        console.print(f"key  {keys[-1]}")
    return 0


def _table(records: dict[str, Record], keys: list[str], metric: str) -> Table:
    table = Table("key", "stage", "steps", "state", "bytes", metric)
    for key in keys:
        segment, state = records[key].segment, records[key].state
        value = records[key].metrics.get(metric)
        steps = f"{segment.start_step}-{segment.end_step}"
        status, num_bytes = ("kept", f"{state.num_bytes:,}") if state.kept else ("dropped", "")
        number = "" if value is None else f"{value:.5g}"
        table.add_row(key[:_KEY_LENGTH], segment.stage, steps, status, num_bytes, number)
    kept = [record.state.num_bytes for record in records.values() if record.state.kept]
    table.caption = f"{len(records)} segments, {len(kept)} states of {sum(kept):,} bytes"
    return table


def _verify(store: Store, console: Console) -> int:
    num_damaged = 0
    for line in damages(store):
        console.print(line, markup=False, highlight=False)
        num_damaged += 1
    if num_damaged:
        console.print(
            f"{num_damaged} files are damaged; what a search needs of them it trains again", highlight=False
        )
        return 1
    console.print("all is whole")
    return 0


def _collect(store: Store, console: Console, records: dict[str, Record], keep_best: bool, drop: bool) -> int:
    needed = needed_states(store, keep_best)
    for name, keys in needed.items():
        kept = [records[key].state for key in keys if key in records and records[key].state.kept]
        num_bytes = sum(state.num_bytes for state in kept)
        console.print(f"{name} keeps {len(kept)} states of {num_bytes:,} bytes", highlight=False)
    unneeded = unneeded_states(records, set().union(*needed.values()))
    left = leftovers(store, records)
    if unneeded:
        console.print(_table({key: records[key] for key in unneeded}, unneeded, "val/recon"))
    for name in left:
        console.print(f"{name}: left by a writer that was killed", highlight=False)
    num_bytes = sum(records[key].state.num_bytes for key in unneeded) + sum(left.values())
    if drop:
        for key in unneeded:
            store.drop_state(key)
        for name in left:
            store.remove(name)
    verb = "dropped" if drop else "can go (--drop deletes them)"
    console.print(f"{len(unneeded)} states and {len(left)} leftovers of {num_bytes:,} bytes {verb}", highlight=False)
    return 0


def parser() -> CommandParser:
    """The command's arguments."""
    made = CommandParser(
        "store",
        "STORAGE ACTION ...",
        "Looks after what searches have stored. STORAGE is the folder or URI that they\n"
        "were given, `results` unless told otherwise.",
        (
            "results list",
            "results lineage KEY             # a key's beginning will do",
            "results collect                 # what can go; --drop: goes",
            "results collect --end SEARCH    # gives a search up",
        ),
        (*STATUSES, "verify: 1 something is damaged"),
    )
    made.add_argument("storage", metavar="STORAGE", help="folder or URI")
    actions = made.add_subparsers(
        dest="command", required=True, metavar="ACTION ...", parser_class=argparse.ArgumentParser
    )
    shows = [
        actions.add_parser("list", help="all segments [--metric NAME]"),
        actions.add_parser("lineage", help="a segment's past [--metric NAME]"),
    ]
    shows[1].add_argument("key", help="a segment's key, or its beginning")
    for show in shows:
        show.add_argument("--metric", default="val/recon", help="validation metric to show (%(default)s)")
    actions.add_parser("verify", help="read everything and compare checksums")
    collect = actions.add_parser("collect", help="unneeded states [--keep-best] [--drop] [--end SEARCH]")
    collect.add_argument("--keep-best", action="store_true", help="of each search only its best trial's states")
    collect.add_argument("--drop", action="store_true", help="delete them; without it they are only shown")
    collect.add_argument("--end", metavar="SEARCH", help="give up this search, which has not ended")
    return made


if __name__ == "__main__":
    run_cli(main)
