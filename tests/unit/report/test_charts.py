"""The figures of the report show the numbers of `trials.csv`, and each trial's own curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
from reports import AT, RATE, make_search, make_summary, make_trial, make_trials, with_metric

from latentsync_ray.config.domains import Choice
from latentsync_ray.report.board import MAX_LINES, NUM_BEST_LINES, Board, board_of
from latentsync_ray.report.charts.cost import pareto_front, quality_against_cost
from latentsync_ray.report.charts.lineages import curves, stage_tree
from latentsync_ray.report.charts.parameters import importance_bars, parameter_panels
from latentsync_ray.report.importance import importance_of
from latentsync_ray.report.palette import series_colours
from latentsync_ray.report.table import csv_text
from latentsync_ray.report.trials import TrialResult, TrialStatus


def board(trials: Sequence[TrialResult], **search: Any) -> Board:
    return board_of([make_summary(trials, make_search(**search))])


def table(trials: Sequence[TrialResult]) -> dict[str, dict[str, str]]:
    """The rows of `trials.csv` by trial."""
    return {row["trial"]: row for row in csv.DictReader(io.StringIO(csv_text(make_search(), trials)))}


def points(trace: Any) -> dict[str, tuple[float, float]]:
    """x and y by trial."""
    return {label: (x, y) for label, x, y in zip(trace.customdata, trace.x, trace.y, strict=True)}


def test_marks_are_where_trials_csv_says_that_trials_ended() -> None:
    trials = make_trials()
    ends = {number: (float(row["global_step"]), float(row["val/objective"])) for number, row in table(trials).items()}
    assert points(quality_against_cost(board(trials)).figure.data[1]) == ends
    assert points(stage_tree(board(trials)).figure.data[-1]) == ends


def test_parameter_panels_have_the_values_of_trials_csv() -> None:
    trials = make_trials()
    rate, step = parameter_panels(board(trials))
    for chart, name in ((rate, RATE), (step, AT)):
        rows = {number: row for number, row in table(trials).items() if row[name]}
        expected = {number: (float(row[name]), float(row["val/objective"])) for number, row in rows.items()}
        assert points(chart.figure.data[0]) == expected
    assert rate.figure.layout.xaxis.type == "log" and step.figure.layout.xaxis.type == "linear"


def test_a_baseline_without_a_step_leaves_the_axis_of_steps_to_numbers() -> None:
    *trials, never, shipped = make_trials()
    made = board([*trials, replace(never, config={AT: None, RATE: 1e-4}), shipped])
    step = parameter_panels(made)[1].figure
    assert step.layout.xaxis.type == "linear" and "6" not in step.data[0].customdata


def test_values_that_are_no_numbers_are_named() -> None:
    name = "second_stage.trainable_modules"
    trials = [replace(make_trial(n, 40, 1e-4), config={name: value}) for n, value in enumerate((None, ["a", "b"]))]
    (chart,) = parameter_panels(board(trials, param_space={name: Choice((None, ["a", "b"]))}))
    assert set(chart.figure.data[0].x) == {"-", "a, b"} and chart.figure.layout.xaxis.type == "category"


def test_curves_have_every_metric_of_every_boundary() -> None:
    trials = make_trials()
    chart = curves(board(trials))
    assert list(chart.alternatives) == ["train/loss", "train/recon", "val/objective", "val/recon"]
    *lines, transitions = chart.figure.data
    for metric, values in chart.alternatives.items():
        drawn = {
            (label, x, y)
            for trace, ys in zip(lines, values, strict=False)
            for label, x, y in zip(trace.customdata, trace.x, ys, strict=True)
            if x is not None
        }
        for trial in trials:
            for point in trial.results:
                label = "" if point.stage == "first_stage" else str(trial.number)
                assert (label, point.global_step, point.metrics[metric]) in drawn
        last = {number: float(row[metric]) for number, row in table(trials).items() if row["transition_step"]}
        ends = {label: y for label, _, y in sorted(drawn, key=lambda point: point[1]) if label}
        assert ends == last
    assert sorted(transitions.x) == [40, 80]


def test_stage_one_is_drawn_once_and_every_branch_from_its_transition() -> None:
    trunk, *branches, _ = stage_tree(board(make_trials())).figure.data
    assert [x for x in trunk.x if x is not None] == [20, 40, 60, 80]
    first: dict[str, int] = {}
    for trace in branches:
        for label, x in zip(trace.customdata, trace.x, strict=True):
            if x is not None:
                first.setdefault(label, x)
    assert first == {"0": 40, "1": 40, "2": 40, "3": 80, "4": 80, "5": 80, "7": 80}


def test_stage_one_that_differs_is_drawn_for_each() -> None:
    one, other = make_trial(0, 40, 1e-4), make_trial(1, 40, 2e-4)
    other = replace(other, results=tuple(replace(point, key=f"{point.key}-1") for point in other.results))
    assert list(stage_tree(board([one, other])).figure.data[0].x) == [20, 40, None, 20, 40, None]


def test_ends_differ_by_symbol_not_by_colour_alone() -> None:
    marker = stage_tree(board(make_trials())).figure.data[-1].marker
    labels = stage_tree(board(make_trials())).figure.data[-1].customdata
    symbols = dict(zip(labels, marker.symbol, strict=True))
    assert [symbols[str(n)] for n in range(8)] == [
        "circle", "triangle-down", "x", "star", "triangle-down", "x", "diamond", "diamond"
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_front_is_the_best_that_any_trial_had_reached(mode: str) -> None:
    trials = make_trials()
    front = pareto_front(board(trials, mode=mode))
    best = min if mode == "min" else max
    for cost, value, label in front:
        reached = [p.metrics["val/objective"] for t in trials for p in t.results if p.global_step <= cost]
        assert value == best(reached)
        assert (cost, value) in [(p.global_step, p.metrics["val/objective"]) for p in trials[int(label)].results]
    assert [cost for cost, _, _ in front] == sorted({cost for cost, _, _ in front})


def test_costs_are_those_of_the_recipe_where_it_gives_them() -> None:
    (trial,) = make_trials()[:1]
    results = [replace(point, cost=point.global_step + 1.1 * point.second_stage_step) for point in trial.results]
    chart = quality_against_cost(board([replace(trial, results=tuple(results))]))
    assert points(chart.figure.data[1])["0"][0] == 40 + 2.1 * 40
    assert chart.figure.layout.xaxis.title.text == "relative cost"
    assert quality_against_cost(board([trial])).figure.layout.xaxis.title.text == "steps"


def test_of_many_trials_the_best_and_the_baselines_are_drawn() -> None:
    *_, never, shipped = make_trials()
    many = [make_trial(n, step, 1e-4 + 1e-7 * n) for n, step in enumerate([40, 80] * MAX_LINES)]
    baselines = [replace(never, number=len(many)), replace(shipped, number=len(many) + 1)]
    made = board([*many, *baselines])
    drawn = {entry.trial.number for entry in made.drawn}
    assert len(drawn) == NUM_BEST_LINES and {trial.number for trial in baselines} < drawn
    values = {trial.number: trial.metrics["val/objective"] for trial in many}
    assert max(values[number] for number in drawn - {300, 301}) < min(
        value for number, value in values.items() if number not in drawn
    )
    assert len(quality_against_cost(made).figure.data[1].x) == len(many) + 2  # marks are drawn for all


def test_the_parameter_that_decides_is_the_important_one() -> None:
    rates = (1e-4, 2e-4, 4e-4, 8e-4)
    made = [make_trial(n, (40, 80)[n % 2], rates[n // 2 % 4]) for n in range(16)]
    trials = [with_metric(trial, objective=rates[trial.number // 2 % 4]) for trial in made]
    found = importance_of(board(trials))
    assert found.shares[RATE] > 0.95 and found.shares[AT] < 0.05
    assert "16 trials" in found.note
    bars = importance_bars(found.shares).figure.data[0]
    assert dict(zip(bars.y, bars.x, strict=True)) == found.shares


def test_with_few_trials_no_parameter_is_called_important() -> None:
    found = importance_of(board(make_trials()))
    assert found.shares == {} and found.note == "Needs 8 trials with a result; there are 4."
    failed = [make_trial(n, 40, 1e-4 * (n + 1), TrialStatus.FAILED) for n in range(9)]
    assert "two parameters" in importance_of(board(failed)).note


@pytest.mark.parametrize(("count", "num_colours"), [(1, 1), (6, 6), (7, 7), (8, 8), (40, 8)])
def test_values_have_colours_of_their_own_or_share_them_with_neighbours(count: int, num_colours: int) -> None:
    colours = list(series_colours([str(n) for n in range(count)]).values())
    assert len(colours) == count and len(set(colours)) == num_colours
    assert len(list(groupby(colours))) == num_colours
