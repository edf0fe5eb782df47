"""How a study goes, told on standard error: a line for each run that starts or ends, with the time that is left."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from medlight.reproduce.plan import Item
from medlight.reproduce.run import Outcome

_WORDS = {"start": "starts", "resume": "goes on", "test": "is measured"}


@dataclass
class Terminal:
    """Lines for a person; where no terminal shows them, only those of runs that ended."""

    outcomes: list[Outcome] = field(default_factory=list)
    workers: int = 1
    asked: int = 0
    begun: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    took: dict[str, list[float]] = field(default_factory=dict)  # seconds of a whole run, by variant

    def planned(self, outcomes: list[Outcome], workers: int) -> None:
        """Say what is there and what is to be done."""
        self.outcomes, self.workers = outcomes, workers
        for outcome in outcomes:
            if outcome.state == "done" and outcome.minutes:
                self.took.setdefault(outcome.item.variant, []).append(outcome.minutes * 60)
        done = sum(outcome.state == "done" for outcome in outcomes)
        self._say(f"{len(self._asked())} runs: {done} there already, {self._left()} to do")

    def started(self, item: Item, action: str, note: str) -> None:
        """A run was started."""
        self.begun[item.name] = time.monotonic()
        if note or sys.stderr.isatty():
            self._say(f"{item.name} {_WORDS[action]}{f' ({note})' if note else ''}{self._eta()}")

    def progress(self, item: Item, share: float) -> None:
        """A run got so far; the first report tells how long a run of this variant takes."""
        before = self.shares.get(item.name)
        self.shares[item.name] = share
        if before is None and item.variant not in self.took and sys.stderr.isatty():
            self._say(f"{item.name} {share:.0%}{self._eta()}")

    def ended(self, outcome: Outcome) -> None:
        """A run ended."""
        name = outcome.item.name
        self.begun.pop(name, None)
        self.shares.pop(name, None)
        if outcome.state == "done":
            self.took.setdefault(outcome.item.variant, []).append(outcome.minutes * 60)
            self._say(f"{name} done in {clock(outcome.minutes * 60)} (run {outcome.run_id}){self._eta()}")
        else:
            self._say(f"{name} failed: {outcome.reason}{self._eta()}")

    def _asked(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.item.seed < self.asked] if self.asked else self.outcomes

    def _left(self) -> int:
        return sum(outcome.state == "waiting" for outcome in self._asked())

    def _eta(self) -> str:
        """``, 2 left, about 5 min``: by what runs of the same variant, else any, took; running ones by their share."""
        waiting = [outcome.item for outcome in self._asked() if outcome.state == "waiting"]
        if not waiting:
            return ""
        known = [seconds for own in self.took.values() for seconds in own]
        for name, share in self.shares.items():
            if not known and share > 0 and name in self.begun:
                known = [(time.monotonic() - self.begun[name]) / share]
        if not known:
            return f", {len(waiting)} left"
        seconds = 0.0
        for item in waiting:
            own = self.took.get(item.variant, known)
            whole = sum(own) / len(own)
            gone = time.monotonic() - self.begun[item.name] if item.name in self.begun else 0.0
            seconds += max(whole - gone, 0.0)
        if not seconds:  # those that run are overdue: nobody knows
            return f", {len(waiting)} left"
        return f", {len(waiting)} left, about {clock(seconds / min(self.workers, len(waiting)))}"

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.2 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
