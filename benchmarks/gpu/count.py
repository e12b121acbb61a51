"""`make count`: kernels, FLOPs and bytes of a step of `configs/256`, counted without a GPU.

The table's times are what an H100 would take at usual rates (`rates`), if the processor is never too slow for it. A
step is forward, recomputation and backward; the optimizer's bytes are beside. Values of the recipe can be given:
`make count ARGS='--stage first_stage --kinds first_stage.batch_size=16'`.
"""

from __future__ import annotations

import argparse

from benchmarks.gpu.counted import CountedStep, Variant, count_step
from benchmarks.gpu.counter import Cost, total
from benchmarks.gpu.sizes import FULL, SMALL, STAGES, recipe_of
from latentsync_ray.cli import run_cli

VARIANTS = {
    "as before: checkpointing, frozen weights in float32": Variant(
        checkpointing=True, narrow=False, implementation="foreach"
    ),
    "with checkpointing": Variant(checkpointing=True),
    "as `auto` decides on 80 GB": Variant(),
    "... channels last and fused norms (prototype)": Variant(fused_norms=True),
}
_COLUMNS = ("", "kernels", "TFLOP", "GB", '"usual" ms', "kept GiB", "optimizer GB")


def main(arguments: list[str] | None = None) -> int:
    """Counts, printing a row as soon as it is known. Returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, help="one stage alone")
    parser.add_argument("--kinds", action="store_true", help="what they are made up of, too")
    parser.add_argument("--small", action="store_true", help="the demo's sizes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the recipe")
    options = parser.parse_intermixed_args(arguments)
    size = SMALL if options.small else FULL
    recipe = recipe_of(size, options.overrides)
    print(_row(*_COLUMNS), _row(*["---"] * len(_COLUMNS)), sep="\n", flush=True)
    for stage in (options.stage,) if options.stage else STAGES:
        for name, variant in VARIANTS.items():
            step = count_step(size, recipe, stage, variant)
            print(_row(f"{stage}, batch {getattr(recipe, stage).batch_size}, {name}", *_cells(step)), flush=True)
            if options.kinds:
                _print_kinds(step)
    return 0


def _cells(step: CountedStep) -> list[str]:
    return [*_figures(step.total), f"{step.kept_bytes / 2**30:.1f}", f"{step.optimizer_bytes / 1e9:.1f}"]


def _figures(cost: Cost) -> list[str]:
    return [
        f"{cost.kernels:,}",
        f"{cost.flops / 1e12:.1f}",
        f"{cost.num_bytes / 1e9:.0f}",
        f"{1e3 * cost.seconds:.0f}",
    ]


def _print_kinds(step: CountedStep) -> None:
    for place in (1, 0):
        for name in dict.fromkeys(key[place] for key in step.costs):
            cost = total(cost for key, cost in step.costs.items() if key[place] == name)
            print(_row(f"... {name}", *_figures(cost), "", ""), flush=True)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run_cli(main)
