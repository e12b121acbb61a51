"""Whatever is damaged in a store, the same command finds it, makes it anew, and gets the same numbers."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import Outcome

from latentsync_ray.config.errors import UserError
from latentsync_ray.store import Store
from latentsync_ray.store.upkeep import damages, whole_records

pytestmark = [pytest.mark.slow, pytest.mark.soak]

NUM_ROUNDS, DAMAGES_A_ROUND = 12, 9
KINDS = {
    "record": "segments/*/record.json",
    "state": "segments/*/state.safetensors",
    "preview": "segments/*/preview.png",
    "execution": "segments/*/executions/*.json",
    "decision": "searches/*/decisions/*.json",
    "trials": "searches/*/trials.json",
    "spent": "searches/*/spent.json",
    "summary": "searches/*/summary.json",
    "table": "searches/*/trials.csv",
    "report": "searches/*/report.html",
    "recipe": "searches/*/best/*.yaml",
    "log": "searches/*/tensorboard/*/*",
}
CHECKED = ("record", "state", "preview", "execution", "decision", "trials", "spent", "summary")
"""These have a checksum. Nobody reads the others back, and a run writes them anew."""


@dataclass
class Damage:
    kind: str
    how: str
    file: Path
    before: bytes

    def says_the_same(self) -> bool:
        """A flip may hit a letter that means nothing, such as the e of a number's exponent."""
        try:
            return json.loads(self.file.read_bytes()) == json.loads(self.before)
        except (OSError, ValueError):
            return False


def inflict(kind: str, how: str, file: Path, chance: random.Random) -> Damage:
    content = bytearray(file.read_bytes())
    damage = Damage(kind, how, file, bytes(content))
    if how == "flipped":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    else:
        del content[chance.randrange(len(content)) :]
    file.unlink() if how == "deleted" else file.write_bytes(content)
    return damage


def results(outcome: Outcome, records: dict[str, dict[str, Any]]) -> tuple[Any, ...]:
    """All that a search is for: every trial's metrics and weights, the best one, and its recipe."""
    recipe = {file.name: file.read_text() for file in (outcome.folder / "best").iterdir()}
    weights = [records[trial["key"]]["weights_sha256"] for trial in outcome.trials]
    return outcome.trials, weights, outcome.summary["best"], recipe


def history(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every segment's numbers, step by step."""
    parts = ("segment", "metrics", "steps", "weights_sha256")
    return {key: [record[part] for part in parts] for key, record in records.items()}


def test_a_hundred_random_damages(
    cluster: None, make_search: Any, run_search: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"second_stage.optimizer.lr": {"grid": [0.01, 0.02]}}
    # One trial at a time, so that decisions do not depend on the order of arrival.
    halving = {"name": "asha", "grace_period": 4, "reduction_factor": 2}
    space = make_search(
        param_space={"transition.at_step": {"grid": [4, 8]}} | rates,
        trial_scheduler=halving,
        max_concurrent_trials=1,
        workers={"max_groups": 1},
    )
    outcome = run_search(space)
    store = Store(str(outcome.store))
    records = whole_records(store)
    whole, whole_history = results(outcome, records), history(records)
    assert list(damages(store)) == []
    chance = random.Random(0)
    counts: Counter[str] = Counter()

    for number in range(NUM_ROUNDS):
        # A search that has ended looks at little. Every other round begins as if it had been killed at its end.
        if number % 2 == 0:
            (outcome.folder / "trials.json").unlink()
        inflicted: list[Damage] = []
        while len(inflicted) < DAMAGES_A_ROUND:
            kind, how = chance.choice(list(KINDS)), chance.choice(("flipped", "cut", "deleted"))
            files = sorted({*outcome.store.glob(KINDS[kind])} - {damage.file for damage in inflicted})
            if files:
                inflicted.append(inflict(kind, how, chance.choice(files), chance))
        found = list(damages(store))
        unreadable = {damage.file.parent for damage in inflicted if damage.kind == "record"}
        for damage in inflicted:
            counts.update([damage.how, damage.kind])
            if damage.kind in CHECKED and damage.how != "deleted" and not damage.says_the_same():
                named = any(line.startswith(f"{damage.file}: ") for line in found)
                assert named or damage.file.parent in unreadable, damage  # without its record a state is nothing

        capsys.readouterr()
        try:
            outcome = run_search(space)
        except UserError as error:  # what was spent cannot be trained again
            (spent,) = outcome.store.glob(KINDS["spent"])
            assert str(error).startswith(f"{spent}: ") and "delete it" in str(error)
            spent.unlink()
            print(error)
            outcome = run_search(space)
        said = capsys.readouterr().out.splitlines() + outcome.summary["notices"]
        records = whole_records(store)
        assert outcome.exit_status == 0
        assert results(outcome, records) == whole, inflicted
        assert history(records).items() <= whole_history.items(), inflicted
        left = list(damages(store))
        for line in found:  # it was said, or nobody has looked at it
            file = Path(line.partition(": ")[0])
            told = any(str(file) in other for other in said)
            assert told or line in left or file.name == "summary.json", (line, said)
            counts["told" if told else "not looked at"] += 1

    print(f"{counts}; {len(outcome.executed)} segments were begun where {len(whole_history)} would do")
    assert counts["flipped"] + counts["cut"] + counts["deleted"] == NUM_ROUNDS * DAMAGES_A_ROUND >= 100
    assert counts["told"] >= 10
    assert all(counts[kind] for kind in KINDS)
