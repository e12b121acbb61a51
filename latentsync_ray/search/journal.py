"""The journal: suggestions and decisions, so that the same command decides the same before it decides anew.

What an adaptive scheduler or searcher does depends on the order in which results arrive. The segments that it led to
are in the store, and the decisions have to be there too.
"""

from __future__ import annotations

from collections.abc import Mapping

from latentsync_ray.config.domains import Domain
from latentsync_ray.config.plain import Parameters
from latentsync_ray.report.summary import Cloning
from latentsync_ray.search.entries import Decision, Suggestion, read_entry
from latentsync_ray.store import DamagedEntryError, Store


class Journal:
    """Suggestions by number, decisions by trial, generation and global_step; one small file each.

    Args:
        store: Where the journal is kept.
        folder: Its folder below the store's root.

    Entries that are damaged or were made for other values count as never made: they are named in `notices`, and
    decided again.
    """

    def __init__(self, store: Store, folder: str):
        self._store, self._folder = store, folder
        self._decisions: dict[tuple[int, int, int], Decision] = {}
        self._suggestions: dict[int, Parameters] = {}
        self.notices: list[str] = []
        for name in store.list_files(folder):
            if name.endswith(".json"):  # anything else is a half-written file that a kill has left
                self._read(name)
        self._to_replay = set(self._decisions)

    def _read(self, name: str) -> None:
        path = f"{self._folder}/{name}"
        try:
            entry = read_entry(self._store.read_json(path) or {})
        except (DamagedEntryError, KeyError, TypeError):
            self.notices.append(f"{self._store.root}/{path}: is no whole journal entry; this is decided again")
            return
        if isinstance(entry, Suggestion):
            self._suggestions[entry.trial] = entry.values
        else:
            self._decisions[entry.place] = entry

    def lookup(self, trial: int, generation: int, global_step: int, parameters: Parameters) -> Decision | None:
        """The decision that was made before for a trial with these values, if any."""
        place = trial, generation, global_step
        self._to_replay.discard(place)
        known = self._decisions.get(place)
        if known is None or known.parameters == parameters:
            return known
        del self._decisions[place]
        self._misfit(_decision_name(*place), trial)
        return None

    def _misfit(self, name: str, trial: int) -> None:
        place = f"{self._store.root}/{self._file(name)}"
        self.notices.append(f"{place}: was made for other values of trial {trial}; this is decided again")

    @property
    def replaying(self) -> bool:
        """Whether decisions of a call before have not been looked up yet."""
        return bool(self._to_replay)

    def write(self, decision: Decision) -> None:
        """Keeps a decision; one for the same place is replaced."""
        self._decisions[decision.place] = decision
        self._store.write_json(self._file(_decision_name(*decision.place)), decision.to_json())

    def suggestion(self, trial: int, param_space: Mapping[str, Domain]) -> Parameters | None:
        """The values that were suggested for a trial before, if any, and if they lie in the space."""
        values = self._suggestions.get(trial)
        if values is None:
            return None
        if values.keys() == param_space.keys() and all(param_space[name].contains(values[name]) for name in values):
            return values
        del self._suggestions[trial]
        self._misfit(_suggestion_name(trial), trial)
        return None

    @property
    def num_suggestions(self) -> int:
        """How many suggestions it holds."""
        return len(self._suggestions)

    def write_suggestion(self, suggestion: Suggestion) -> None:
        """Keeps the values suggested for a trial."""
        self._suggestions[suggestion.trial] = suggestion.values
        self._store.write_json(self._file(_suggestion_name(suggestion.trial)), suggestion.to_json())

    def clonings(self) -> list[Cloning]:
        """Who became the clone of whom, by trial and generation."""
        made = (decision for _, decision in sorted(self._decisions.items()))
        return [
            Cloning(
                trial=decision.trial,
                global_step=decision.global_step,
                source=exploit.source,
                source_step=exploit.pointer.last.end_step if exploit.pointer.last else 0,
                key=exploit.key,
                parameters=exploit.parameters,
            )
            for decision in made
            if (exploit := decision.exploit) is not None
        ]

    def _file(self, name: str) -> str:
        return f"{self._folder}/{name}.json"


def _decision_name(trial: int, generation: int, global_step: int) -> str:
    return f"{trial:05d}-{generation:03d}-{global_step:09d}"


def _suggestion_name(trial: int) -> str:
    return f"suggestion-{trial:05d}"
