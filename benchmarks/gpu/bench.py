"""`make bench-gpu`: what a step of `configs/256` takes on this GPU, before, now and with prototypes; in two parts.

    python -m benchmarks.gpu.bench 1    # 360 s: the card, commit 4810e33, each change alone and together, profiles
    python -m benchmarks.gpu.bench 2    # 300 s: CUDA graphs, fused norms, compilation, the official trainer, batches

Each row is a JSON line, written when it is measured, on the standard output and in `--out`; the end is a table.
Weights and clips are random and made here: nothing is downloaded. A row that fails says why, and others go on.
Rows named "again" hash the weights after the same steps in a second process: equal hashes are equal bits. "predicted"
is what `make count` says, counted meanwhile in other processes. `--small --device cpu` tries it all without a GPU.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.gpu.counted import Variant, count_step
from benchmarks.gpu.plan import Row, part_1, part_2
from benchmarks.gpu.process import RowError, RowProcess
from benchmarks.gpu.sizes import FULL, SMALL, STAGES, Size, make_inputs, recipe_of
from benchmarks.gpu.steps import Job
from latentsync_ray.cli import run_cli
from latentsync_ray.latentsync.flops import named_peak_flops

SECONDS = {"1": 360, "2": 300}
END_SECONDS = 5
"""Kept for the table."""
MAX_COUNTING = 4
"""Processes that count; the rest of the machine is left to the rows."""
COLUMNS = ("stage", "row", "batch", "s a step", "predicted", "samples/s", "MFU, %", "GiB", "weights", "remark")


def main(arguments: list[str] | None = None) -> int:
    """Measures. Returns 1 if a row has failed, else 0."""
    started = time.monotonic()
    options = _options(arguments)
    size = SMALL if options.small else FULL
    recipe = recipe_of(size, options.overrides)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, options.out.open("a") as file:
        make_inputs(size, recipe, Path(scratch))
        job = Job(size, Path(scratch), options.device, options.hash_steps, options.steps, tuple(options.overrides))
        batch_sizes = {stage: getattr(recipe, stage).batch_size for stage in STAGES}
        rows = list(part_1(job, options.small) if options.part == "1" else part_2(job, batch_sizes))
        predictions = Predictions(size, options.overrides, rows)
        try:
            lines = _measured(
                rows, started + options.seconds - END_SECONDS, predictions, file, options.device == "cuda"
            )
            predicted = predictions.finish(max(0.0, started + options.seconds - END_SECONDS / 2 - time.monotonic()))
        finally:
            predictions.close()
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(table(rows, lines, predicted, named_peak_flops(device)))
    print(f"\n{device}, torch {torch.__version__}, {time.monotonic() - started:.0f} s")
    return int(any("error" in line for line in lines))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(SECONDS))
    parser.add_argument("--seconds", type=float, help="for all of it (360 and 300)")
    parser.add_argument(
        "--out", type=Path, default=Path("results/bench-gpu.jsonl"), help="rows are added (%(default)s)"
    )
    parser.add_argument("--steps", type=int, help="steps to time (8; 2 with --small)")
    parser.add_argument("--hash-steps", type=int, help="steps before them (5; 2 with --small)")
    parser.add_argument("--small", action="store_true", help="small networks, to try the whole path")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for --small")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the recipe")
    options = parser.parse_intermixed_args(arguments)
    options.seconds = options.seconds or SECONDS[options.part]
    options.steps = options.steps or (2 if options.small else 8)
    options.hash_steps = options.hash_steps or (2 if options.small else 5)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no GPU here; `--device cpu --small` tries the whole path")
    return options


def _measured(
    rows: list[Row], end: float, predictions: Predictions, file: TextIO, limited: bool
) -> list[dict[str, Any]]:
    """Measures row after row until the time is up; a row has a limit of its own on a GPU. Returns their lines."""
    process, lines = RowProcess(), []
    try:
        for row in rows:
            if row.fresh:
                process.close()
            line: dict[str, Any] = {"row": row.name, "stage": row.stage}
            began, left = time.monotonic(), end - time.monotonic()
            try:
                if left < 1:
                    raise RowError("no time was left")
                limit = min(row.limit_seconds, left) if limited else left
                line |= process.call(limit, row.function, *row.arguments)
            except RowError as error:
                line["error"] = str(error)
            line["took_seconds"] = round(time.monotonic() - began, 1)
            if row.variant is not None and (known := predictions.known(row)) is not None:
                line["predicted"] = known
            lines.append(line)
            for out in (None, file):
                print(json.dumps(line), file=out, flush=True)
    finally:
        process.close()
    return lines


class Predictions:
    """Counts the rows' steps in other processes while they are measured."""

    def __init__(self, size: Size, overrides: list[str], rows: Iterable[Row]):
        workers = max(1, min(MAX_COUNTING, (os.cpu_count() or 1) - 2))
        context = multiprocessing.get_context("spawn")
        self._pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=os.nice, initargs=(10,))
        self._futures: dict[tuple[str, Variant], concurrent.futures.Future[dict[str, float]]] = {}
        for row in rows:
            if row.variant is not None and (row.stage, row.variant) not in self._futures:
                future = self._pool.submit(predicted, size, overrides, row.stage, row.variant)
                self._futures[row.stage, row.variant] = future

    def known(self, row: Row) -> dict[str, float] | None:
        """What was counted for a row, if that is done."""
        future = self._futures[row.stage, row.variant] if row.variant is not None else None
        return future.result() if future is not None and future.done() else None

    def finish(self, limit_seconds: float) -> list[Any]:
        """What was counted in time, by stage and variant."""
        concurrent.futures.wait(self._futures.values(), limit_seconds)
        return [(key, future.result()) for key, future in self._futures.items() if future.done()]

    def close(self) -> None:
        """Ends the processes."""
        for process in list(self._pool._processes.values()):
            process.kill()
        self._pool.shutdown(cancel_futures=True)


def predicted(size: Size, overrides: list[str], stage: str, variant: Variant) -> dict[str, float]:
    """What the counter says of a step."""
    torch.set_num_threads(1)
    step = count_step(size, recipe_of(size, overrides), stage, variant)
    return {
        "seconds": round(step.seconds, 4),
        "kernels": step.total.kernels,
        "gigabytes": round(step.total.num_bytes / 1e9, 1),
        "kept_gib": round(step.kept_bytes / 2**30, 2),
        "model_tflop": step.model_flops / 1e12,
    }


def table(rows: list[Row], lines: list[dict[str, Any]], predicted: list[Any], peak_flops: float | None) -> str:
    """The lines as a table; hashes of a second process are held against the first one's."""
    counted, hashes = dict(predicted), {}
    for line in lines:
        if not line["row"].startswith("again"):
            hashes[line["row"], line["stage"]] = line.get("weights")
    made = ["", *(_cells(cells) for cells in (COLUMNS, ["---"] * len(COLUMNS)))]
    for row, line in zip(rows, lines, strict=True):
        known = counted.get((row.stage, row.variant), {})
        seconds, remark = line.get("seconds"), line.get("error", "")
        mfu = ""
        if seconds and known and peak_flops:
            mfu = f"{100 * 1e12 * known['model_tflop'] / seconds / peak_flops:.1f}"
        if row.name.startswith("again") and "weights" in line:
            first = hashes.get((row.name.removeprefix("again: "), row.stage))
            remark = "equal bits" if first == line["weights"] else f"DIFFERS from {first}"
        elif "gradients_off" in line:
            equal = "equal" if line["gradients_equal"] else f"off by {line['gradients_off']:.1e}"
            remark = f"gradients {equal}; {remark}".removesuffix("; ")
        elif not seconds and not remark:
            remark = ", ".join(f"{name} {value:.4g}" for name, value in line.items() if isinstance(value, float))
        cells = [line.get("batch_size", ""), _number(seconds, ".4f"), _number(known.get("seconds"), ".4f")]
        cells += [_number(line.get("samples_per_second"), ".4g"), mfu, _number(line.get("gib"), ".1f")]
        made.append(_cells([row.stage, row.name, *cells, line.get("weights", ""), remark]))
    return "\n".join(made)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cells(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    run_cli(main)
