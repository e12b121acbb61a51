"""The journal: suggestions and decisions, so that the same command decides the same before it decides anew.

What an adaptive scheduler or searcher does depends on the order in which results arrive. The segments that it led to
are in the store, and the decisions have to be there too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from latentsync_ray.config.domains import Domain
from latentsync_ray.store import DamagedEntryError, Store


@dataclass(frozen=True)
class Exploit:
    """A trial goes on as the clone of a better one, under new values."""

    source: int
    """Number of the trial that it clones."""
    key: str
    """The segment from whose end it goes on."""
    parameters: dict[str, Any]
    """Its new values."""
    pointer: dict[str, Any]
    """The source's checkpoint: its last segment and its history, no weights."""
    last_train_time: float
    """The scheduler's time of the source at that checkpoint."""
    last_perturbation_time: float
    """When the source was compared last, on the same scale."""


@dataclass(frozen=True)
class Decision:
    """What became of a trial at one boundary."""

    trial: int
    """Its number."""
    generation: int
    """How often it had been made a clone before: then it may reach the same step again."""
    global_step: int
    """The boundary."""
    parameters: dict[str, Any]
    """The trial's values at that boundary; what was decided for others does not count."""
    decision: str
    """Ray Tune's word: CONTINUE, PAUSE, STOP or NOOP."""
    exploit: Exploit | None = None
    """What it was made a clone of, if it was."""


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
        self._suggestions: dict[int, dict[str, Any]] = {}
        self.notices: list[str] = []
        for name in store.list_files(folder):
            if name.endswith(".json"):  # anything else is a half-written file that a kill has left
                self._read(name)
        self._to_replay = set(self._decisions)

    def _read(self, name: str) -> None:
        path = f"{self._folder}/{name}"
        try:
            entry = self._store.read_json(path) or {}
            if "suggestion" in entry:
                self._suggestions[entry["trial"]] = entry["suggestion"]
            else:
                exploit = entry.pop("exploit")
                self._keep(Decision(**entry, exploit=exploit and Exploit(**exploit)))
        except (DamagedEntryError, KeyError, TypeError):
            self.notices.append(f"{self._store.root}/{path}: is no whole journal entry; this is decided again")

    def _keep(self, decision: Decision) -> None:
        self._decisions[decision.trial, decision.generation, decision.global_step] = decision

    def lookup(self, trial: int, generation: int, global_step: int, parameters: Mapping[str, Any]) -> Decision | None:
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
        place = f"{self._store.root}/{self._folder}/{name}.json"
        self.notices.append(f"{place}: was made for other values of trial {trial}; this is decided again")

    @property
    def replaying(self) -> bool:
        """Whether decisions of a call before have not been looked up yet."""
        return bool(self._to_replay)

    def write(self, decision: Decision) -> None:
        """Keeps a decision; one for the same place is replaced."""
        self._keep(decision)
        name = _decision_name(decision.trial, decision.generation, decision.global_step)
        self._write(name, asdict(decision))

    def suggestion(self, trial: int, param_space: Mapping[str, Domain]) -> dict[str, Any] | None:
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

    def write_suggestion(self, trial: int, values: dict[str, Any]) -> None:
        """Keeps the values suggested for a trial."""
        self._suggestions[trial] = values
        self._write(_suggestion_name(trial), {"trial": trial, "suggestion": values})

    def exploits(self) -> list[dict[str, Any]]:
        """All exploits, by trial and generation: who cloned whom, where, and with which values."""
        return [
            {
                "trial": made.trial,
                "global_step": made.global_step,
                "source": made.exploit.source,
                "source_step": made.exploit.pointer["last"]["end_step"],
                "key": made.exploit.key,
                "parameters": made.exploit.parameters,
            }
            for _, made in sorted(self._decisions.items())
            if made.exploit is not None
        ]

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        self._store.write_json(f"{self._folder}/{name}.json", entry)


def _decision_name(trial: int, generation: int, global_step: int) -> str:
    return f"{trial:05d}-{generation:03d}-{global_step:09d}"


def _suggestion_name(trial: int) -> str:
    return f"suggestion-{trial:05d}"
