"""How like two runs are: every point of every metric, and the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medlight.tracking import store

Verdict = Literal["identical", "within tolerance", "different"]
Curve = dict[int, float]
SCORE = 0.01
SHARE = 0.01
TOLERANCE = (
    f"tolerance: at every step within {SCORE:g} for scores between 0 and 1, and within {SHARE:.0%} for everything else"
)
_SCORES = ("dice", "nsd", "auroc", "accuracy", "f1", "ece", "probe_accuracy", "knn_accuracy")
_NOT_LEARNT = ("system/", "train/samples_per_s", "train/data_wait_share", "export/")  # clocks, and bundles made later


@dataclass(frozen=True)
class Likeness:
    """One metric in both runs: last values, points, the largest difference at any step, the first step that differs."""

    metric: str
    recorded: float | None
    rerun: float | None
    points: int
    largest: float
    first: int | None
    verdict: Verdict


def curves(run_id: str) -> dict[str, Curve]:
    """Return every metric of a run by step, but for those that measure time, the machine, and bundles made of it."""
    client = store.client()
    with store.reached():
        names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(_NOT_LEARNT)]
        found = {name: client.get_metric_history(run_id, name) for name in names}
    return {name: _by_step(points) for name, points in found.items()}


def _by_step(points: Iterable[Any]) -> Curve:
    return {point.step: point.value for point in sorted(points, key=lambda point: int(point.timestamp))}


def compare(recorded: Mapping[str, Curve], rerun: Mapping[str, Curve]) -> list[Likeness]:
    """Compare two runs metric by metric; one that only one of them has is different."""
    return [_compared(name, recorded.get(name, {}), rerun.get(name, {})) for name in sorted({*recorded, *rerun})]


def _compared(name: str, one: Curve, two: Curve) -> Likeness:
    gaps = {step: _gap(one.get(step), two.get(step)) for step in sorted({*one, *two})}
    near = all(gap <= allowed(name, one.get(step, math.nan)) for step, gap in gaps.items() if gap)
    first = next((step for step, gap in gaps.items() if gap), None)
    verdict: Verdict = "identical" if first is None else "within tolerance" if near else "different"
    return Likeness(name, _last(one), _last(two), len(gaps), max(gaps.values(), default=0.0), first, verdict)


def allowed(name: str, value: float) -> float:
    """Return how far another machine's value of a metric may be from the recorded one.

    Once one bit differs, training amplifies it from step to step; what is left equal is how well it learns. For a
    score, 0.01 is what another seed changes it by at least; losses and distances in mm have no such scale of their own,
    and so are judged by their size.
    """
    parts = name.split("/")
    return SCORE if any(part in _SCORES for part in parts) else SHARE * abs(value)


def _gap(one: float | None, two: float | None) -> float:
    """The difference of two values; infinite where one is missing or no number, 0 only where all bits are equal."""
    if one is None or two is None:
        return math.inf
    if math.isnan(one) or math.isnan(two):
        return 0.0 if math.isnan(one) and math.isnan(two) else math.inf
    return 0.0 if one == two else abs(one - two)


def _last(curve: Curve) -> float | None:
    return curve[max(curve)] if curve else None


def overall(found: Sequence[Likeness]) -> Verdict:
    """Return the worst verdict."""
    order: tuple[Verdict, ...] = ("different", "within tolerance", "identical")
    return next((verdict for verdict in order if any(one.verdict == verdict for one in found)), "different")


def same_weights(one: Path, two: Path) -> bool:
    """Return whether two checkpoints hold the same weights to the last bit."""
    import torch

    from medlight.tasks import checkpoint

    first, second = (checkpoint.read(path)["state_dict"] for path in (one, two))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
