"""A recorded run, run once more: from what it recorded, where that is still so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medlight.errors import MedlightError
from medlight.launch import settle
from medlight.launch.fit import Launch, evaluate, fit
from medlight.launch.precision import Choice
from medlight.launch.resolve import parse
from medlight.reproduce import differences, likeness
from medlight.reproduce.differences import Difference
from medlight.reproduce.likeness import Likeness, Verdict
from medlight.reproduce.recorded import WEIGHTS, Recorded, RecordedSplit
from medlight.tasks.weight_files import sha256
from medlight.tracking import manifest, store


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
        """The worst of all metrics; identical only where the weights are, as far as they are there to compare."""
        worst = likeness.overall(self.metrics)
        return "within tolerance" if worst == "identical" and self.weights is False else worst


def look(recorded: Recorded) -> World:
    """Compare what a run recorded with what is there now; the data are prepared for it, nothing is trained."""
    _same_threads(recorded.manifest["environment"]["threads"])
    found = differences.of_code(recorded.manifest, recorded.diff, recorded.config)
    found += differences.of_packages(recorded.manifest["environment"]["packages"], recorded.config)
    found += differences.of_machine(recorded.manifest["environment"], recorded.config)
    found += _of_resume(recorded)
    found += _of_checkpoint(recorded)
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
        if split.labelled is not None:
            found += differences.of_choice(split.labelled, split.labelled_today)
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
    """The run's data module, prepared, with the recorded split and labelled cases."""
    data: Any
    _, data, _ = parse(recorded.config).build()
    parts, labelled = recorded.manifest["data"]["split"], recorded.manifest["data"].get("labelled")
    split = None
    if parts and hasattr(data, "splitter"):
        split = RecordedSplit(parts, data.splitter, Path(data.store_dir) / "digests.sqlite", labelled)
        data.splitter = split
    data.prepare_data()
    data.setup("fit")
    return data, split


def _of_weights(recorded: Recorded) -> list[Difference]:
    """Compare the digest of the weights that the run began with."""
    from medlight.launch import weights

    then, now = recorded.tags.get(WEIGHTS), weights.digest(recorded.config)
    return [Difference("initial weights", (then or "not known")[:12], (now or "none")[:12])] if then != now else []


def _of_checkpoint(recorded: Recorded) -> list[Difference]:
    """Tell where the run's best checkpoint is not the file that its fit wrote; nothing is computed from it."""
    try:
        now = sha256(store.artifact(recorded.run_id, store.BEST))
    except MedlightError:
        return []  # not there to compare
    then = recorded.tags.get(store.BEST_TAG, now)
    note = "altered since the fit: its weights, compared below, are others"
    return [Difference("best checkpoint", then[:12], now[:12], False, note)] if then != now else []


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
    if not recorded.resumes:
        return []
    other = list(dict.fromkeys(name for after in recorded.resumes for name in _unlike(recorded.manifest, after)))
    times = f" {len(recorded.resumes)} times" if len(recorded.resumes) > 1 else ""
    text = f"cut and resumed{times}{' with other ' + ', '.join(other) if other else ''}"
    return [Difference("resume", text, "in one go", bool(other), "" if other else "ends the same")]


def _unlike(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two manifests of one run.

    Code: of the modules that both imported. Which are imported depends on what there is to do, as scans to prepare.
    """
    one, two = before["environment"], after["environment"]
    known = "code" in before and "code" in after
    both = before["code"].keys() & after["code"].keys() if known else ()
    parts = {
        "code": ({n: before["code"][n] for n in both}, {n: after["code"][n] for n in both}),
        "packages": (one["packages"], two["packages"]),
        "python": (one["python"], two["python"]),
        "processor": (one["hardware"]["cpu"], two["hardware"]["cpu"]),
        "threads": (one["threads"]["torch"], two["threads"]["torch"]),
        "data": (before["data"]["digest"], after["data"]["digest"]),
    }
    if not known:
        parts["code"] = (one["code_digest"], two["code_digest"])
    return [name for name, (then, later) in parts.items() if then != later]


def _same_weights(run_id: str, best: Path | None) -> bool | None:
    """Whether the best weights are equal; None where a checkpoint is not there any more."""
    if best is None:
        return None
    try:
        return likeness.same_weights(store.artifact(run_id, store.BEST), best)
    except MedlightError:
        return None
