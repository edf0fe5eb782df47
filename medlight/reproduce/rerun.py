"""A recorded run, run once more: from what it recorded, where that is still so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medlight.config import get_path
from medlight.errors import MedlightError
from medlight.launch import settle
from medlight.launch.fit import Launch, evaluate, fit
from medlight.launch.precision import Choice
from medlight.launch.resolve import parse
from medlight.reproduce import differences, likeness
from medlight.reproduce.differences import Difference
from medlight.reproduce.likeness import Likeness, Verdict
from medlight.reproduce.recorded import Recorded, RecordedSplit
from medlight.tracking import manifest, store

WEIGHTS = "medlight.pretrained_sha256"  # the tag of a run that began with weights


@dataclass(frozen=True)
class World:
    """What a rerun would meet today.

    split: the recorded split; None where the data module has no such thing. error: why there can be no rerun at all.
    """

    found: list[Difference] = field(default_factory=list)
    split: RecordedSplit | None = None
    error: MedlightError | None = None

    @property
    def unchanged(self) -> bool:
        """Whether nothing differs that can change a result."""
        return self.error is None and not any(one.matters for one in self.found)


@dataclass(frozen=True)
class Outcome:
    """A rerun set against its original. weights: whether those of the best checkpoints are the same to the last bit."""

    run_id: str
    metrics: list[Likeness]
    weights: bool | None

    @property
    def verdict(self) -> Verdict:
        """The worst of all metrics."""
        return likeness.overall(self.metrics)


def look(recorded: Recorded) -> World:
    """Compare what a run recorded with what is there now; the data are prepared for it, nothing is trained."""
    _same_threads(recorded.manifest["environment"]["threads"])
    found = differences.of_code(recorded.manifest, recorded.diff)
    found += differences.of_packages(recorded.manifest["environment"]["packages"], recorded.config)
    found += differences.of_machine(recorded.manifest["environment"], recorded.config)
    found += _of_resume(recorded)
    try:
        found += _of_weights(recorded)
    except MedlightError as error:
        then = recorded.tags.get(WEIGHTS, "")[:12] or "given"
        return World([*found, Difference("initial weights", then, "not usable")], error=error)
    try:
        data, split = _data(recorded)
    except MedlightError as error:
        count = len(recorded.manifest["data"]["cases"])
        return World([*found, Difference("data", f"{count} cases", "not usable")], error=error)
    now = manifest.data_fingerprint(data)
    found += differences.of_data(recorded.manifest["data"], now)
    if split is not None:
        found += differences.of_split(recorded.manifest["data"]["split"], split.today)
    return World(found, split)


def run(recorded: Recorded, world: World) -> Outcome:
    """Fit (and test, where the original was tested), and compare every metric.

    Raises: the error that keeps it from being run; whatever a fit raises.
    """
    if world.error is not None:
        raise world.error
    launch = Launch(
        study=recorded.study,
        name=f"{recorded.name.removesuffix('-rerun')}-rerun",
        tags={"medlight.rerun_of": recorded.run_id},
        split=world.split,
    )
    with _same_precision(recorded.tags):
        result = fit(recorded.config, launch)
    if recorded.tested and result.best_checkpoint:
        evaluate(recorded.config, result.best_checkpoint, "test", result.run_id, world.split)
    compared = likeness.compare(likeness.curves(recorded.run_id), likeness.curves(result.run_id))
    return Outcome(result.run_id, compared, _same_weights(recorded.run_id, result.best_checkpoint))


def _data(recorded: Recorded) -> tuple[Any, RecordedSplit | None]:
    """The run's data module, prepared, with the recorded split."""
    data: Any
    _, data, _ = parse(recorded.config).build()
    parts = recorded.manifest["data"]["split"]
    split = None
    if parts and hasattr(data, "splitter"):
        split = RecordedSplit(parts, data.splitter, Path(data.store_dir) / "digests.sqlite")
        data.splitter = split
    data.prepare_data()
    data.setup("fit")
    return data, split


def _of_weights(recorded: Recorded) -> list[Difference]:
    """Compare the digest of the weights that the run began with."""
    then = recorded.tags.get(WEIGHTS)
    if then is None:
        return []
    from medlight.launch import weights

    now = get_path(weights.resolve(recorded.config), "model.init_args.pretrained")["sha256"]
    return [Difference("initial weights", then[:12], now[:12])] if then != now else []


def _same_threads(recorded: Mapping[str, Any]) -> None:
    """Compute with as many threads as the run did, where there are that many: sums depend on how they are split."""
    usable = manifest.hardware()["usable_cores"]
    if recorded["torch"] <= usable:
        torch.set_num_threads(int(recorded["torch"]))


@contextmanager
def _same_precision(tags: Mapping[str, str]) -> Iterator[None]:
    """Hand down the recorded precision and memory layout, so that ``auto`` is not probed for anew."""
    if "medlight.precision" not in tags:
        yield
        return
    last = tags.get("medlight.channels_last") == "true"
    handed = settle.environment(Choice(tags["medlight.precision"], last, "as before"))  # type: ignore[arg-type]
    os.environ.update(handed)
    try:
        yield
    finally:
        for name in handed:
            os.environ.pop(name, None)


def _of_resume(recorded: Recorded) -> list[Difference]:
    """A run that was cut and resumed ends as if it had not been, unless the world changed in between."""
    if recorded.resumed is None:
        return []
    one, two = recorded.manifest["environment"], recorded.resumed["environment"]
    parts = {
        "code": (recorded.manifest.get("code", one["code_digest"]), recorded.resumed.get("code", two["code_digest"])),
        "packages": (one["packages"], two["packages"]),
        "python": (one["python"], two["python"]),
        "processor": (one["hardware"]["cpu"], two["hardware"]["cpu"]),
        "threads": (one["threads"]["torch"], two["threads"]["torch"]),
        "data": (recorded.manifest["data"]["digest"], recorded.resumed["data"]["digest"]),
    }
    other = [name for name, (before, after) in parts.items() if before != after]
    text = f"cut and resumed{' with other ' + ', '.join(other) if other else ''}"
    return [Difference("resume", text, "in one go", bool(other), "" if other else "ends the same")]


def _same_weights(run_id: str, best: Path | None) -> bool | None:
    """Whether the best weights are equal; None where a checkpoint is not there any more."""
    if best is None:
        return None
    try:
        return likeness.same_weights(store.artifact(run_id, "checkpoints/best.ckpt"), best)
    except MedlightError:
        return None
