"""What the store's command shows, checks and lets go of."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from records import make_trained

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.core.segment import Segment
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.report.trials_file import write_trials
from latentsync_ray.store import DamagedEntryError, Store
from latentsync_ray.store.__main__ import main
from latentsync_ray.store.searches import Phase, Searches
from latentsync_ray.store.upkeep import (
    damages,
    needed_states,
    unneeded_states,
    whole_records,
)

ROOT = "0" * 64
Keys = dict[str, str]


def publish(store: Store, parent: str, stage: str, start: int, end: int, lr: float = 0.1) -> Segment:
    segment = Segment(parent, stage, {"lr": lr}, start, start if stage == SECOND_STAGE else 0, end)
    state = {"model.w": torch.full((4,), end + lr)}
    trained = make_trained(segment, {"val/recon": 1 / end, "val/sync": lr})
    store.publish(trained, state, f"picture {segment.key}".encode())
    return segment


def trial(number: int, status: str, *segments: Segment) -> TrialResult:
    return TrialResult(number, {}, tuple(Boundary.after(s, {}) for s in segments), TrialStatus(status))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def keys(store: Store) -> Keys:
    """A trunk of 10, 20 and 30 steps, branches at 20 and 30, and what two ended searches say of them."""
    trunk, parent = [], ROOT
    for end in (10, 20, 30):
        trunk.append(publish(store, parent, FIRST_STAGE, end - 10, end))
        parent = trunk[-1].key
    branches = {}
    for name, start, lr in (("poor", trunk[1], 0.2), ("best", trunk[2], 0.3)):
        middle = publish(store, start.key, SECOND_STAGE, start.end_step, start.end_step + 5, lr)
        branches[name] = (middle, publish(store, middle.key, SECOND_STAGE, middle.end_step, middle.end_step + 5, lr))
    trials = [
        trial(0, "stopped", trunk[0], trunk[1], *branches["poor"]),
        trial(1, "finished", *trunk, *branches["best"]),
    ]
    write_trials(store, "searches/two", trials, trials[1], 20)
    write_trials(store, "searches/one", [trial(0, "finished", trunk[0])], trial(0, "finished"), 40)
    found = {str(segment.end_step): segment.key for segment in trunk}
    for name, (middle, end) in branches.items():
        found |= {f"{name} middle": middle.key, f"{name} end": end.key}
    return found


def run(store: Store, *arguments: str) -> int:
    return main([store.uri, *arguments])


def names(keys: Keys, found: Any) -> set[str]:
    return {name for name, key in keys.items() if key in found}


def all_needed(store: Store, keep_best: bool = False) -> set[str]:
    return set().union(*needed_states(store, keep_best).values())


def needed(store: Store, keys: Keys, keep_best: bool) -> set[str]:
    return names(keys, all_needed(store, keep_best))


def test_what_searches_refer_to_is_needed(store: Store, keys: Keys) -> None:
    # 10 is the last of the other search's trial; 20 and 30 are where branches may start.
    assert needed(store, keys, False) == {"10", "20", "30", "poor end", "best end"}
    assert needed(store, keys, True) == {"10", "30", "best end"}
    records = whole_records(store)
    assert names(keys, unneeded_states(records, all_needed(store))) == {"poor middle", "best middle"}
    store.drop_state(keys["poor middle"])
    assert names(keys, unneeded_states(whole_records(store), all_needed(store))) == {"best middle"}


def test_without_its_search_a_state_can_go(store: Store, keys: Keys) -> None:
    store.remove_folder("searches/two")
    assert needed(store, keys, False) == {"10"}


def test_collect_shows_and_with_drop_deletes_states_and_leftovers_but_no_record(
    store: Store, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(store.root) / "segments"
    (folder / keys["20"] / ".tmpa1b2c3").write_bytes(b"half")  # as safetensors calls its own
    for name in (f"{keys['20']}/partial.json", f"{'e' * 64}/partial.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        store.write_json(f"segments/{name}", {"steps": []})
    (folder / ("e" * 64) / "state.safetensors").write_bytes(b"no record")
    store.write_bytes("ray/latentsync_ray-1/tuner.pkl", b"a killed command's")
    store.write_bytes("ray/of_the_user.txt", b"")
    damaged = folder / keys["poor end"] / "record.json"
    damaged.write_text("{")
    files = set(store.files("segments"))
    middles = [keys["poor middle"], keys["best middle"]]
    freed = sum(record.state.num_bytes for key, record in whole_records(store).items() if key in middles)
    freed += 13 + 18 + (folder / keys["20"] / "partial.json").stat().st_size

    assert run(store, "collect") == 0
    said = capsys.readouterr().out
    assert f"2 states and 4 leftovers of {freed:,} bytes can go" in said
    assert "records that are damaged are left out" in said
    assert set(store.files("segments")) == files

    assert run(store, "collect", "--drop") == 0
    assert f"2 states and 4 leftovers of {freed:,} bytes dropped" in capsys.readouterr().out
    gone = {f"segments/{key}/state.safetensors" for key in (*middles, "e" * 64)}
    outlived = {f"segments/{keys['20']}/{name}" for name in (".tmpa1b2c3", "partial.json")}
    assert files - set(store.files("segments")) == gone | outlived
    assert list(store.files("ray")) == ["ray/of_the_user.txt"]
    for key in middles:
        record = store.read_record(key)
        assert record is not None and not record.state.kept
    assert list(damages(store)) == [f"{damaged}: is no whole file"]
    run(store, "collect", "--drop")
    assert "0 states and 0 leftovers of 0 bytes" in capsys.readouterr().out


@pytest.mark.parametrize("begun", ["without trials", "with a journal alone", "with damaged trials"])
def test_as_long_as_a_search_has_not_ended_nothing_goes(begun: str, store: Store, keys: Keys) -> None:
    if begun == "without trials":
        write_trials(store, "searches/live", {}, None, 0)
    elif begun == "with a journal alone":
        store.write_json("searches/live/decisions/1.json", {"trial": 1})
    else:
        store.write_bytes("searches/live/trials.json", b"{}")
    files = store.files("segments")
    with pytest.raises(UserError, match=r"searches/live.* any state may be needed"):
        run(store, "collect", "--drop")
    assert store.files("segments") == files


def test_verify_names_every_damaged_file(store: Store, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    store.log_execution(keys["10"], "group-1")
    store.write_json("syncnets/a.json", {"balanced_accuracy": 0.9})
    store.write_bytes("ray/own.json", b"Ray's own, without a checksum")
    assert run(store, "verify") == 0
    assert capsys.readouterr().out == "all is whole\n"

    damaged = [
        *Path(store.root).glob(f"segments/{keys['10']}/executions/*.json"),
        *(Path(store.root) / name for name in ("syncnets/a.json", "searches/one/trials.json")),
        *(Path(store.root, "segments", keys["10"], name) for name in ("state.safetensors", "preview.png")),
        Path(store.root, "segments", keys["20"], "record.json"),
    ]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:-3])
    lost = [Path(store.root, "segments", keys["30"], name) for name in ("state.safetensors", "preview.png")]
    for file in lost:
        file.unlink()
    files = store.files("")
    assert run(store, "verify") == 1
    *lines, total = capsys.readouterr().out.splitlines()
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(map(str, damaged + lost))
    assert total.startswith("8 files are damaged")
    assert store.files("") == files


def test_list_shows_every_segment(store: Store, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    store.drop_state(keys["poor middle"])
    assert run(store, "list", "--metric", "val/sync") == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if re.search("[0-9a-f]{12}", line)]
    assert len(rows) == 7
    (row,) = [row for row in rows if keys["poor middle"][:12] in row]
    assert re.sub(r"\W+", " ", row).split() == [
        keys["poor middle"][:12],
        "second_stage",
        "20",
        "25",
        "dropped",
        "0",
        "2",
    ]
    assert "7 segments, 6 states of" in said


def test_a_lineage_goes_back_to_the_root(store: Store, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store, "lineage", keys["best end"][:9]) == 0
    said = capsys.readouterr().out
    places = [said.index(keys[name][:12]) for name in ("10", "20", "30", "best middle", "best end")]
    assert places == sorted(places)
    assert keys["poor middle"][:12] not in said
    assert f"root {ROOT}" in said


@pytest.mark.parametrize(("key", "rule"), [("zz", "no segment begins so"), ("", "7 segments begin so")])
def test_a_key_that_names_not_one_segment(key: str, rule: str, store: Store, keys: Keys) -> None:
    with pytest.raises(UserError, match=f"KEY: must name one segment, got {key}: {rule}"):
        run(store, "lineage", key)


def test_a_place_without_segments_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be the storage of a search, holds no segments"):
        main([str(tmp_path / "nowhere"), "verify"])
    assert not (tmp_path / "nowhere").exists()


def test_a_search_runs_until_it_ends_or_falls_silent(store: Store, keys: Keys) -> None:
    spent = {"worker_seconds": 1.0, "wall_seconds": 1.0}
    for name in ("one", "running", "begun", "killed", "own"):
        store.write_json(f"searches/{name}/spent.json", spent)
    for name in ("running", "killed", "own"):
        write_trials(store, f"searches/{name}", {}, None, 0)
    file = Path(store.root) / "searches/killed/spent.json"
    long_ago = file.stat().st_mtime - 61
    os.utime(file, (long_ago, long_ago))

    # "one" has ended, "two" never notes anything, "begun" has not come to say that it runs.
    def running(own: str) -> list[str]:
        return [search.name for search in Searches(store).others(own) if search.phase is Phase.RUNNING]

    assert running("searches/own") == ["begun", "running"]
    assert running("searches/running") == ["begun", "own"]


def test_what_other_searches_refer_to(store: Store, keys: Keys) -> None:
    write_trials(store, "searches/running", {}, None, 0)
    searches = Searches(store)

    def of_others(own: str) -> set[str]:
        return names(keys, set().union(*(search.needed for search in searches.others(own))))

    assert of_others("searches/two") == {"10"}
    assert of_others("searches/own") == {"10", "20", "30", "poor end", "best end"}
    (Path(store.root) / "searches/one/trials.json").write_text("{")
    with pytest.raises(DamagedEntryError, match=r"searches/one/trials\.json: is no whole file"):
        searches.others("searches/own")


def test_a_search_that_is_given_up_needs_nothing(
    store: Store, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    write_trials(store, "searches/gone", [], None, 40)
    with pytest.raises(UserError, match=r"searches/gone: has not ended.*or give it up: --end gone"):
        run(store, "collect")
    for name, rule in (("two", "two has ended"), ("nobody", "must be one of gone, one, two, got nobody")):
        with pytest.raises(UserError, match=f"--end: {rule}"):
            run(store, "collect", "--end", name)
    assert run(store, "collect", "--end", "gone") == 0
    assert run(store, "collect") == 0
    said = capsys.readouterr().out
    assert "two keeps 4 states of" in said and "gone keeps 0 states" in said and "2 states and 0 leftovers" in said


def test_a_storage_that_cannot_be_written_is_shown_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:  # where others than root may look
        store = Store(f"{folder}/store")
        publish(store, ROOT, FIRST_STAGE, 0, 10)
        assert run(store, "list") == 0  # as root, whose libraries others may not load
        shown = capsys.readouterr().out
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        is_root = os.geteuid() == 0
        try:
            if is_root:  # who may write everywhere
                os.seteuid(65534)
            assert run(Store(store.uri), "list") == 0
            assert capsys.readouterr().out == shown
            assert run(Store(store.uri), "verify") == 0
            with pytest.raises(UserError, match=r"that can be written \(Permission denied\)"):
                run(Store(store.uri), "collect", "--drop")
        finally:
            if is_root:
                os.seteuid(0)
            for path in (Path(folder), *Path(folder).rglob("*")):
                path.chmod(0o755)
