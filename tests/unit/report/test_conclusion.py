"""The answer of a search: its sentences are true, its commands are accepted, its policies leave where they say."""

from __future__ import annotations

import contextlib
import csv
import io
import shlex
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from searches_made import EVERY, LENGTH, WEIGHTS, Made, curve, grid

from latentsync_ray import export, train
from latentsync_ray.config.domains import Choice, Grid, LogUniform
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import ConfirmConfig, SearchConfig
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.config.transition import BelowConfig, PlateauConfig, TransitionConfig
from latentsync_ray.core.baselines import Role
from latentsync_ray.core.transition import Observation, should_transition
from latentsync_ray.report.answer import Answer
from latentsync_ray.report.conclusion import conclude
from latentsync_ray.report.next_commands import CONFIRM, EXPORT, FINER, LONGER, TRAIN, WIDER
from latentsync_ray.report.table import csv_text
from latentsync_ray.report.trials import TrialResult, TrialStatus

ROOT = Path(__file__).parents[3]
SPACE = "search_spaces/transition.yaml"
GIVEN = (
    f"length.steps={LENGTH}",
    "second_stage.num_steps=null",
    "first_stage.report_every_steps=40",
    "validation.objective={recon: 1.0, sync: 0.05, lpips: 0.1, trepa: 10.0}",
    "second_stage.report_every_steps=10",
    "transition.min_step=280",
    "transition.max_step=640",
    "param_space.transition.at_step={grid: [280, 400, 520, 640]}",
    "param_space.second_stage.optimizer.lr={grid: [2.5e-5, 1.0e-4, 2.0e-4, 3.2e-3]}",
)


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[SearchConfig, Recipe]]:
    with contextlib.chdir(ROOT):
        yield load_search(SPACE, GIVEN)


def answer(asked: tuple[SearchConfig, Recipe], made: Made, folder: str = "/r/searches/s") -> Answer:
    found = conclude(*asked, made.trials, made.terms_of, folder)
    assert found is not None
    return found


def test_the_first_sentences_of_a_search(asked: tuple[SearchConfig, Recipe]) -> None:
    found = answer(asked, grid())
    assert (found.best, found.num_pairs, found.num_clips, found.num_groups) == (6, 24, 12, 6)
    assert found.sentences[0] == (
        "Leave stage one at step 400; 520 cannot be told from it on these 12 clips of 6 speakers."
    )
    assert (
        found.sentences[1] == "Second-stage learning rate about 2e-4; 1e-4 cannot be told from it, 3.2e-3 diverges."
    )
    assert found.sentences[2].startswith("Against never leaving stage one: -")
    assert found.tied == (5, 6, 9, 10)
    threshold, rate = sorted(found.parameters, key=lambda one: one.name, reverse=True)
    assert (threshold.best, threshold.tied, threshold.worse, threshold.at_edge) == (
        400,
        (400, 520),
        (280, 640),
        False,
    )
    assert (rate.tied, rate.worse, rate.diverged) == ((1e-4, 2e-4), (2.5e-5,), (3.2e-3,))


def test_the_first_sentence_follows_from_the_table_and_the_stored_terms(asked: tuple[SearchConfig, Recipe]) -> None:
    """By another computation than ours: a search over all pairs of trials with plain t statistics over speakers."""
    made = grid()
    rows = list(csv.DictReader(io.StringIO(csv_text(asked[0], made.trials))))
    finished = [row for row in rows if row["role"] == "searched" and row["status"] == "finished"]
    best = min(finished, key=lambda row: float(row["val/objective"]))
    found = answer(asked, made)
    assert found.best == int(best["trial"])
    assert f"step {best['transition_step']}" in found.sentences[0]

    def by_speaker(key: str) -> list[float]:
        terms = made.terms[key]
        pairs = [sum(WEIGHTS[name] * terms.values[name][index] for name in WEIGHTS) for index in range(24)]
        return [statistics.fmean(pairs[start : start + 4]) for start in range(0, 24, 4)]

    def distance(row: dict[str, Any]) -> float:
        errors = [a - b for a, b in zip(by_speaker(row["key"]), by_speaker(best["key"]), strict=True)]
        return statistics.fmean(errors) / (statistics.stdev(errors) / 6**0.5) if any(errors) else 0.0

    # Without a correction for many trials t_5 cuts at 2.0 (one-sided 95 %), with Bonferroni's for all 12 at 5.2.
    certain = {int(row["trial"]) for row in finished if distance(row) < 2.0}
    possible = {int(row["trial"]) for row in finished if distance(row) < 5.2}
    assert certain <= set(found.tied) <= possible

    for role, difference in found.differences.items():
        (row,) = (row for row in rows if row["role"] == role)
        assert difference.relative == pytest.approx(float(best["val/objective"]) / float(row["val/objective"]) - 1)
        ours, theirs = by_speaker(best["key"]), by_speaker(row["key"])
        ratio = statistics.fmean(ours) / statistics.fmean(theirs)
        errors = [(a - ratio * b) / statistics.fmean(theirs) for a, b in zip(ours, theirs, strict=True)]
        half = 2.571 * statistics.stdev(errors) / 6**0.5
        assert difference.low == pytest.approx(difference.relative - half, abs=0.02 * half)
        assert difference.relative + 0.98 * half < difference.high < difference.relative + 3 * half
    assert len(found.differences) == 3


def test_more_is_better_turns_everything_round(asked: tuple[SearchConfig, Recipe]) -> None:
    search, recipe = asked
    made = grid()
    least = answer(asked, made)
    more = Made()
    for trial in made.trials:  # the same distances, on the other side
        last = trial.results[-1]
        terms = made.terms[last.key]
        turned = {name: [1 - value for value in values] for name, values in terms.values.items()}
        more.terms[last.key] = replace(terms, values=turned)
        metrics = {name: 1 - value for name, value in last.metrics.items()}
        more.trials.append(replace(trial, results=(*trial.results[:-1], replace(last, metrics=metrics))))
    found = answer((replace(search, metric="val/recon", mode="max"), recipe), more)
    assert (found.best, found.tied) == (least.best, least.tied)
    for difference in found.differences.values():
        assert difference.relative > 0 and difference.low < difference.relative < difference.high
        # The end towards "no better" is the corrected one.
        assert difference.relative - difference.low > difference.high - difference.relative


def test_never_leaving_that_is_best_is_the_finding(asked: tuple[SearchConfig, Recipe]) -> None:
    found = answer(asked, grid(never=0.14))
    assert found.differences[Role.NEVER].low > 0.05
    assert found.sentences[0].startswith(
        "Never leaving stage one is best: the best trial that leaves it, at step 400, is worse by "
    )


def test_a_baseline_that_cannot_be_told_from_the_best_or_is_better_is_said(
    asked: tuple[SearchConfig, Recipe],
) -> None:
    told = answer(asked, grid(never=0.1503, shipped=0.14)).sentences
    assert told[0].startswith("Leave stage one at step 400;")
    assert "So it cannot be said that leaving stage one helps." in told
    assert "So nothing that was searched is as good as the recipe as shipped." in told


def test_a_baseline_that_is_the_best_trial_has_no_difference(asked: tuple[SearchConfig, Recipe]) -> None:
    made = grid()
    made.trials[18] = replace(made.trials[6], number=18, config={}, role=Role.SHIPPED)
    found = answer(asked, made)
    assert found.differences[Role.SHIPPED].relative == found.differences[Role.SHIPPED].high == 0
    assert "These values are the recipe as shipped." in found.sentences


def test_without_terms_the_best_is_told_without_intervals(asked: tuple[SearchConfig, Recipe]) -> None:
    made = grid()
    found = conclude(*asked, made.trials, lambda key: None, "/r/searches/s")
    assert found is not None and (found.best, found.tied, found.num_pairs, found.differences) == (6, (6,), 0, {})
    unsure = "how sure that is is not known, since validation terms are not stored"
    assert found.sentences[0] == f"Leave stage one at step 400 (val/objective 0.15); {unsure}."
    assert found.sentences[2].endswith("(val/objective, without intervals).") and "[" not in found.sentences[2]


def test_two_speakers_are_judged_by_their_clips_and_one_clip_not_at_all(asked: tuple[SearchConfig, Recipe]) -> None:
    assert answer(asked, grid(num_speakers=2)).sentences[0].endswith("on these 4 clips of 2 speakers.")
    found = answer(asked, grid(num_speakers=1))
    assert found.sentences[0].endswith("is not known, since too few clips are held out.")


def test_terms_that_are_not_those_of_the_metric_are_not_used(asked: tuple[SearchConfig, Recipe]) -> None:
    made = grid()
    terms = made.terms["end6"]
    made.terms["end6"] = replace(
        terms, values={name: [2 * v for v in values] for name, values in terms.values.items()}
    )
    assert answer(asked, made).num_pairs == 0


@pytest.mark.parametrize("trials", [[], [0], [3]])
def test_few_trials(trials: list[int], asked: tuple[SearchConfig, Recipe]) -> None:
    made = grid()
    found = conclude(*asked, [made.trials[number] for number in trials], made.terms_of, "/r/searches/s")
    if trials == [0]:
        assert found is not None and found.sentences[0] == "Leave stage one at step 280."
        assert found.tied == (0,)
    else:
        assert found is None


def test_seeds_are_one_candidate_and_the_luckiest_is_not_its_number(asked: tuple[SearchConfig, Recipe]) -> None:
    search, recipe = asked
    space = {"transition.at_step": Grid((280, 400)), "seed": Grid((0, 1, 2))}
    made = Made()
    for step, values in ((280, (0.150, 0.180, 0.171)), (400, (0.160, 0.161, 0.162))):
        for seed, value in enumerate(values):
            made.add({"transition.at_step": step, "seed": seed}, step, value)
    found = answer((replace(search, param_space=space, given=()), recipe), made)
    assert (
        found.best == 4
    )  # 400 on the mean, though one seed of 280 was the best of all; its middle seed stands for it
    assert set(found.tied) == {0, 1, 2, 3, 4, 5}
    assert "Values are judged by their means over 3 seeds." in found.sentences
    assert [parameter.name for parameter in found.parameters] == ["transition.at_step"]


def test_confirmed_candidates_are_judged_by_their_confirming_trainings_alone(
    asked: tuple[SearchConfig, Recipe],
) -> None:
    made = grid()
    for number, values in ((6, (0.158, 0.159, 0.157)), (10, (0.151, 0.1515, 0.152)), (5, (0.156, 0.157, 0.156))):
        config, step = made.trials[number].config, made.trials[number].transition_step
        for seed, value in enumerate(values, 1):
            made.add({**config, "second_stage.seed": seed}, step, value, role=Role.CONFIRMING)
    found = answer(asked, made)
    assert found.best == 10 and 10 in found.tied
    assert any("3 of the best values under 3 other seeds" in sentence for sentence in found.sentences)
    metric = [trial.metrics["val/objective"] for trial in made.trials if trial.role == Role.CONFIRMING]
    shipped = made.trials[18].metrics["val/objective"]
    assert found.differences[Role.SHIPPED].relative == pytest.approx(statistics.fmean(metric[3:6]) / shipped - 1)


def test_trials_of_unequal_length_and_stopped_ones_are_said(asked: tuple[SearchConfig, Recipe]) -> None:
    search, recipe = asked
    made = grid()
    last = made.trials[0].results[-1]
    longer = replace(made.trials[0], results=(*made.trials[0].results[:-1], replace(last, global_step=720)))
    made.trials[0] = longer
    made.trials[1] = replace(made.trials[1], status=TrialStatus.STOPPED)
    second = replace(recipe.second_stage, num_steps=40)
    told = answer((search, replace(recipe, length=None, second_stage=second)), made).sentences
    assert any(one.startswith("Trials had 680 to 720 steps in all") for one in told)
    assert "1 of 16 trials were stopped early by asha and are not compared." in told


def test_categories_policies_and_drawn_values(asked: tuple[SearchConfig, Recipe]) -> None:
    search, recipe = asked
    modules, rate = "second_stage.trainable_modules", "second_stage.optimizer.lr"
    space = {modules: Choice((None, ["attentions."])), rate: LogUniform(1e-5, 1e-3)}
    made = Made()
    for index in range(8):
        made.add(
            {modules: [None, ["attentions."]][index % 2], rate: 1e-4 * (1 + index / 10)}, 480, 0.15 + index / 1e6
        )
    made.add({modules: None, rate: 9.9e-4}, 520, 0.1)
    search = replace(search, param_space=space, given=())
    found = answer((search, recipe), made)
    assert (
        found.sentences[0]
        == "Leave stage one at step 520; the other steps tried are worse on these 12 clips of 6 speakers."
    )
    by_name = {parameter.name: parameter for parameter in found.parameters}
    assert by_name[modules].best is None and by_name[modules].worse == (["attentions."],)
    assert by_name[rate].at_edge and len(by_name[rate].worse) == 8
    assert "second_stage.optimizer.lr 9.9e-4 is the largest that was tried." in found.sentences
    made.trials.pop()
    found = answer((search, recipe), made)
    assert "Second-stage learning rate about 1e-4; 1.1e-4 to 1.7e-4 cannot be told from it." in found.sentences


@pytest.mark.parametrize(
    ("diverging", "told"),
    [
        ((7, 9), "8e-4 and 1e-3 diverge"),
        ((6, 7, 8, 9), "7e-4 to 1e-3 diverge"),
        ((3, 6, 7, 8), "4e-4 and 7e-4 to 9e-4 diverge"),  # 5e-4 and 6e-4 did not
        ((1, 3, 5, 7, 8), "5 of the 8 values tried from 2e-4 to 9e-4 diverge"),
        ((9,), "1e-3 diverges"),
    ],
)
def test_ranges_hold_no_value_of_which_something_else_is_true(
    diverging: tuple[int, ...], told: str, asked: tuple[SearchConfig, Recipe]
) -> None:
    search, recipe = asked
    rate, made = "second_stage.optimizer.lr", Made()
    for index in range(10):
        status = TrialStatus.DIVERGED if index in diverging else TrialStatus.FINISHED
        made.add({rate: 1e-4 * (index + 1)}, 480, 0.15 * (1 + index), status)
    found = answer((replace(search, param_space={rate: LogUniform(1e-5, 1e-2)}, given=()), recipe), made)
    assert found.sentences[1] == f"Second-stage learning rate about 1e-4; {told}."


def at_the_edge() -> Made:
    """Of thresholds and rates of which the least are the best."""
    made = Made()
    for step, worse in ((280, 1.0), (400, 1.1), (520, 1.2), (640, 1.3)):
        for rate, by in ((2.5e-5, 1.0), (1e-4, 1.1), (2e-4, 1.2), (3.2e-3, 1.3)):
            made.add({"transition.at_step": step, "second_stage.optimizer.lr": rate}, step, 0.15 * worse * by)
    return made


@pytest.mark.parametrize(
    ("make", "purposes"), [(grid, {CONFIRM, FINER, LONGER}), (at_the_edge, {WIDER, CONFIRM, FINER, LONGER})]
)
def test_commands_are_accepted(
    make: Callable[[], Made], purposes: set[str], asked: tuple[SearchConfig, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answer(asked, make(), f"{ROOT}/results/searches/it's")
    commands = {command.purpose: shlex.split(command.command) for command in found.commands}
    assert purposes | {TRAIN, EXPORT} <= set(commands)
    for purpose in purposes:
        python, dash, module, file, *arguments = commands[purpose]
        assert (python, dash, module, file) == ("python", "-m", "latentsync_ray.tune", SPACE)
        search, recipe = load_search(file, arguments)
        steps = set(search.param_space["transition.at_step"].values())
        rates = set(search.param_space["second_stage.optimizer.lr"].values())
        if purpose == WIDER:
            assert steps == {160, 280, 400, 40} - {40} | {min(steps)} and min(steps) < 280
            assert min(rates) < 2.5e-5 and recipe.transition.min_step == min(steps)
        elif purpose == FINER:
            best = found.parameters[[one.name for one in found.parameters].index("transition.at_step")].best
            assert best in steps and len(steps) > 2 and len(rates) > 2
            assert all(step % EVERY == 0 for step in steps)
        elif purpose == CONFIRM:
            assert search.confirm == ConfirmConfig(top=3, seeds=3)
            assert replace(search, confirm=ConfirmConfig(), given=()) == replace(asked[0], given=())
        else:
            assert recipe.length is not None and recipe.length.steps == 2 * LENGTH
            assert steps == {560, 800, 1040, 1280} and recipe.transition.max_step == 1280

    ran: list[Any] = []
    monkeypatch.setattr(train, "search_of_one", lambda folder, overrides: ran.append((folder, overrides)) or asked)
    monkeypatch.setattr(train, "run", lambda search: 0)
    assert train.main(commands[TRAIN][3:]) == 0 and ran == [("results/searches/it's/best", [])]
    monkeypatch.setattr(
        export, "stored_weights", lambda *given: ran.append(given[0]) or (_ for _ in ()).throw(KeyError)
    )
    with pytest.raises(KeyError):
        export.main(commands[EXPORT][3:])
    assert ran[-1] == "results/searches/it's"


def test_an_edge_is_said_with_the_command_that_widens_it(asked: tuple[SearchConfig, Recipe]) -> None:
    found = answer(asked, at_the_edge())
    (wider,) = (command.command for command in found.commands if command.purpose == WIDER)
    assert "transition.at_step 280 is the smallest that was tried: a better one may lie beyond it." in found.sentences
    assert f"To {WIDER}: {wider}" in found.sentences
    # At the other end only "never" is left within the length, which is a baseline.
    made = Made()
    for step in (280, 640):
        made.add({"transition.at_step": step, "second_stage.optimizer.lr": 1e-4}, step, 0.2 - step / 1e4)
    told = answer(asked, made).sentences
    assert "transition.at_step 640 is the largest that was tried." in told


def test_policies_leave_where_the_best_trial_did(asked: tuple[SearchConfig, Recipe]) -> None:
    made = grid()
    found = answer(asked, made)
    assert 1 <= len(found.policies) <= 3
    history = [Observation(step, curve(step)) for step in range(EVERY, LENGTH + 1, EVERY)]
    for text in found.policies:
        assert text.startswith("# leaves stage one at step 400, as the best trial did\n")
        section = yaml.safe_load(text)["transition"]
        plateau = section.pop("plateau", None)
        below = section.pop("below", None)
        policy = TransitionConfig(
            **section, plateau=plateau and PlateauConfig(**plateau), below=below and BelowConfig(**below)
        )
        left = [end for end in range(1, len(history) + 1) if should_transition(policy, history[:end])]
        assert history[left[0] - 1].global_step == 400
    assert "plateau" in found.policies[0]


def test_policies_that_come_close_say_how_far_they_are(asked: tuple[SearchConfig, Recipe]) -> None:
    made = Made()
    made.add({"transition.at_step": 80, "second_stage.optimizer.lr": 1e-4}, 80, 0.15)
    rising = replace(made.trials[0].results[1], metrics={"val/objective": 0.4})
    made.trials[0] = replace(made.trials[0], results=(made.trials[0].results[0], rising, made.trials[0].results[2]))
    found = answer(asked, made)
    assert found.policies and found.policies[0].startswith("# leaves stage one at step 80, as")
    only: TrialResult = made.add({}, 40, 0.15)
    assert answer(asked, Made(trials=[only], terms=made.terms)).policies == ()
