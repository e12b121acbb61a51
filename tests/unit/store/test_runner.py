"""One command runs a search; one that is gone is taken over."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from latentsync_ray.config.errors import UserError
from latentsync_ray.store import Store
from latentsync_ray.store.runner import SILENT_SECONDS, Runner, sole_runner

FOLDER = "searches/s"
HOLD = """
import sys, time
from latentsync_ray.store import Store
from latentsync_ray.store.runner import sole_runner
with sole_runner(Store(sys.argv[1]), "searches/s"):
    print("runs", flush=True)
    time.sleep(600)
"""


def runners(store: Store) -> list[str]:
    return [name for name in store.list_files(FOLDER) if name.startswith("runner")]


def test_a_second_command_is_refused_and_a_killed_one_taken_over(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    command = [sys.executable, "-c", HOLD, store.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "runs\n"
        for _ in range(2):
            with pytest.raises(UserError, match=rf"process {first.pid} on .* runs this search since 20.*; wait"):
                sole_runner(store, FOLDER).__enter__()
        first.send_signal(signal.SIGKILL)
    with sole_runner(store, FOLDER):
        assert runners(store) == ["runner-2.json"]
        with pytest.raises(UserError, match=rf"process {os.getpid()} on"):
            sole_runner(store, FOLDER).__enter__()
    assert runners(store) == []
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_runner_on_another_host_is_gone_when_it_is_silent(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    elsewhere = replace(Runner.this_process(), host="elsewhere", pid=1)
    store.write_json(f"{FOLDER}/runner-7.json", asdict(elsewhere))
    store.write_json(f"{FOLDER}/spent.json", {})
    file, spent = (tmp_path / FOLDER / name for name in ("runner-7.json", "spent.json"))
    long_ago = file.stat().st_mtime - SILENT_SECONDS - 1
    os.utime(file, (long_ago, long_ago))
    with pytest.raises(UserError, match="process 1 on elsewhere runs this search"):
        sole_runner(store, FOLDER).__enter__()  # it goes on noting what it spends
    os.utime(spent, (long_ago, long_ago))
    with sole_runner(store, FOLDER):
        assert runners(store) == ["runner-8.json"]


def test_a_file_that_is_still_empty_is_a_runners(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes(f"{FOLDER}/runner-1.json", b"")
    with pytest.raises(UserError, match="another process runs this search; wait"):
        sole_runner(store, FOLDER).__enter__()


def take_over(uri: str, barrier: Any, taken: Any) -> None:
    barrier.wait(timeout=60)
    try:
        with sole_runner(Store(uri), FOLDER):
            taken.put(os.getpid())
            barrier.wait(timeout=60)  # both have tried
    except UserError:
        barrier.wait(timeout=60)


def test_of_two_commands_that_take_over_at_once_one_does(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    store = Store(str(tmp_path))
    gone = replace(Runner.this_process(), process_started=0.0)
    for _ in range(3):
        store.write_json(f"{FOLDER}/runner-3.json", asdict(gone))
        barrier, taken = context.Barrier(2), context.Queue()
        processes = [context.Process(target=take_over, args=(store.uri, barrier, taken)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert taken.get(timeout=10) in [process.pid for process in processes]
        assert taken.empty() and runners(store) == []
