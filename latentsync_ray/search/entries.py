"""What a journal holds: suggestions, and decisions with the clones that they have made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentsync_ray.config.plain import Parameters, Settings
from latentsync_ray.search.pointer import Pointer


@dataclass(frozen=True)
class Suggestion:
    """A searcher has suggested values for a trial."""

    trial: int
    """Its number."""
    values: Parameters
    """What was suggested."""

    def to_json(self) -> Settings:
        """Plain values; `from_json` reads them."""
        return {"trial": self.trial, "suggestion": dict(self.values)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Suggestion:
        """The suggestion that `to_json` has made these values of."""
        return cls(values["trial"], values["suggestion"])


@dataclass(frozen=True)
class Exploit:
    """A trial goes on as the clone of a better one, under new values."""

    source: int
    """Number of the trial that it clones."""
    key: str
    """The segment from whose end it goes on."""
    parameters: Parameters
    """Its new values."""
    pointer: Pointer
    """The source's checkpoint."""
    last_train_time: float
    """The scheduler's time of the source at that checkpoint."""
    last_perturbation_time: float
    """When the source was compared last, on the same scale."""

    def to_json(self) -> Settings:
        """Plain values; `from_json` reads them."""
        return {
            "source": self.source,
            "key": self.key,
            "parameters": dict(self.parameters),
            "pointer": self.pointer.to_json(),
            "last_train_time": self.last_train_time,
            "last_perturbation_time": self.last_perturbation_time,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Exploit:
        """The exploit that `to_json` has made these values of."""
        return cls(**{**values, "pointer": Pointer.from_json(values["pointer"])})


@dataclass(frozen=True)
class Decision:
    """What became of a trial at one boundary."""

    trial: int
    """Its number."""
    generation: int
    """How often it had been made a clone before: then it may reach the same step again."""
    global_step: int
    """The boundary."""
    parameters: Parameters
    """The trial's values at that boundary; what was decided for others does not count."""
    decision: str
    """Ray Tune's word: CONTINUE, PAUSE, STOP or NOOP."""
    exploit: Exploit | None = None
    """What it was made a clone of, if it was."""

    @property
    def place(self) -> tuple[int, int, int]:
        """Trial, generation and global_step, of which there is one decision."""
        return self.trial, self.generation, self.global_step

    def to_json(self) -> Settings:
        """Plain values; `from_json` reads them."""
        return {
            "trial": self.trial,
            "generation": self.generation,
            "global_step": self.global_step,
            "parameters": dict(self.parameters),
            "decision": self.decision,
            "exploit": None if self.exploit is None else self.exploit.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Decision:
        """The decision that `to_json` has made these values of."""
        exploit = values["exploit"] and Exploit.from_json(values["exploit"])
        return cls(**{**values, "exploit": exploit})


def read_entry(values: Mapping[str, Any]) -> Suggestion | Decision:
    """The entry that a file of the journal stands for.

    Raises:
        KeyError, TypeError: It is none.
    """
    return Suggestion.from_json(values) if "suggestion" in values else Decision.from_json(values)
