"""The answer of a search, from what became of its trials and the stored terms."""

from __future__ import annotations

from collections.abc import Sequence

from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.report import sentences
from latentsync_ray.report.answer import Answer
from latentsync_ray.report.next_commands import next_commands
from latentsync_ray.report.pairs import TermsOf
from latentsync_ray.report.parameters import parameter_answers
from latentsync_ray.report.policies import policies_for
from latentsync_ray.report.ranking import rank
from latentsync_ray.report.trials import TrialResult


def conclude(
    search: SearchConfig, recipe: Recipe, trials: Sequence[TrialResult], terms_of: TermsOf, folder: str
) -> Answer | None:
    """The answer of a search; None as long as no trial has run to its end.

    Args:
        search: What was asked.
        recipe: The recipe before a trial's own values.
        trials: The search's own, baselines, and those that confirm.
        terms_of: The stored terms at the end of a segment, by its key.
        folder: Folder or URI of the results, for commands.
    """
    ranking = rank(search, recipe, trials, terms_of)
    if ranking is None:
        return None
    best = ranking.candidates[ranking.best]
    parameters = parameter_answers(search, trials, ranking)
    commands = next_commands(search, recipe, ranking, parameters, folder)
    told = [
        sentences.leaving(search, recipe, ranking),
        *sentences.values(search, ranking, parameters),
        *sentences.differences(search, ranking),
        *sentences.edges(search, parameters, commands),
        *sentences.limits(search, recipe, trials, ranking, commands),
    ]
    tied = (number for index in ranking.tied for number in ranking.candidates[index].searched)
    standing = next(trial for trial in trials if trial.number == best.number)
    return Answer(
        best=best.number,
        tied=tuple(sorted(tied)),
        num_pairs=ranking.num_pairs,
        num_clips=ranking.num_clips,
        num_groups=ranking.num_groups,
        differences=ranking.differences,
        parameters=parameters,
        sentences=tuple(told),
        commands=commands,
        policies=policies_for(search, recipe, standing, trials),
    )
