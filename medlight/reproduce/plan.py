"""What a study consists of: a run for each variant and seed. Which of them are there, which were cut, which to do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from mlflow.entities import Run

from medlight.config import Config, get_path, nearest, set_path
from medlight.errors import MedlightError, UsageError
from medlight.launch.workers import Job
from medlight.launch.workers import run as run_job
from medlight.reproduce import recorded
from medlight.reproduce.expected import FILE, Budget, Study
from medlight.tracking import store
from medlight.tracking.manifest import changed_code, class_paths, config_digest

INSPECT = "medlight.reproduce.job.inspect"
PRETRAINED = ("model.pretrained", "model.pretrained.weights")
PLACE = "variant:"
WEIGHTS = "initial weights"
SUPERSEDED = "superseded"  # a cut run that can't be gone on with
Action = Literal["done", "test", "resume", "start"]


@dataclass(frozen=True)
class Item:
    """One run of a study: a variant with a seed. ``config`` may still name the variant that it starts from."""

    study: str
    variant: str
    seed: int
    config: Config
    after: str | None
    data_digest: str = ""
    tested: bool = True
    monitor: str = ""

    @property
    def name(self) -> str:
        """The run's name."""
        return f"{self.variant}-seed{self.seed}"

    def started_from(self, run_id: str | None) -> Config:
        """The configuration once the run that it starts from is there."""
        return _replaced(self.config, self.after, f"run:{run_id}") if self.after else self.config


@dataclass(frozen=True)
class Standing:
    """What there is of an item in MLflow, and so what is to be done."""

    action: Action
    run_id: str | None = None
    minutes: float = 0.0  # what an earlier part took
    obsolete: tuple[str, ...] = ()  # runs that were cut and can't be gone on with
    note: str = ""  # why a run that is there does not count


def items(study: Study, budget: Budget, seeds: int) -> list[Item]:
    """Every run of the study with its resolved configuration, seed by seed, variants in an order that can be run.

    Raises: UsageError that names the variant and the key.
    """
    from medlight.launch.resolve import read, resolve

    found = []
    overrides = list(study.quick.items()) if budget == "quick" else []
    for variant in _ordered(study):
        files = [str(study.folder / file) for file in variant.files]
        for seed in range(seeds):
            own = [("study", study.name), ("name", f"{variant.name}-seed{seed}"), ("seed_everything", seed)]
            try:
                config = resolve(read(files, [*overrides, *own]))
                _check_start(config, variant.after)
            except UsageError as error:
                raise UsageError(f"{study.folder / FILE}: variant {variant.name}: {error}") from None
            found.append(Item(study.name, variant.name, seed, config, variant.after))
    return sorted(found, key=lambda item: item.seed)


def _ordered(study: Study) -> list[Any]:
    """The variants as they are written, each after the one that it starts from."""
    done: dict[str, Any] = {}

    def visit(name: str) -> None:
        variant = study.variants[name]
        if variant.after:
            visit(variant.after)
        done.setdefault(name, variant)

    for name in study.variants:
        visit(name)
    return list(done.values())


def _start(config: Config) -> tuple[str, str] | None:
    """Where a configuration names the variant that it starts from, and which."""
    for path in PRETRAINED:
        try:
            value = get_path(config, path)
        except KeyError:
            continue
        if isinstance(value, str) and value.startswith(PLACE):
            return path, value.removeprefix(PLACE)
    return None


def _check_start(config: Config, after: str | None) -> None:
    start = _start(config)
    if start and start[1] != after:
        raise UsageError(f"{start[0]}: {PLACE}{start[1]}; mend: write `after: {start[1]}` at the variant too")
    if after and not start:
        raise UsageError(f"after: {after}; mend: write {PRETRAINED[0]}: {PLACE}{after} in its YAML too")


def _replaced(config: Config, after: str | None, value: str | None) -> Config:
    start = _start(config)
    if start is None:
        return config
    path = PRETRAINED[0] if value is None else start[0]
    return set_path(config, path, value)


def inspected(study: Study, planned: list[Item], environment: dict[str, str]) -> list[Item]:
    """The items with the digest of their data, once it is prepared and every expected metric was seen to be logged.

    Raises: UsageError for data that are not there, and for a metric that its variant does not log.
    """
    first: dict[str, Item] = {}
    for item in planned:
        first.setdefault(_data_key(item), item)
    variants = [item.variant for item in first.values()]
    configs = [_replaced(item.config, item.after, None) for item in first.values()]
    try:
        said = run_job(Job(INSPECT, {"variants": variants, "configs": configs}, environment=environment))
    except UsageError as error:
        raise UsageError(f"{study.folder / FILE}: {error}") from None
    known = dict(zip(first, said, strict=True))
    _check_metrics(study, {item.variant: known[_data_key(item)] for item in planned})
    return [_with(item, known[_data_key(item)]) for item in planned]


def _with(item: Item, about: dict[str, Any]) -> Item:
    kept = {"data_digest": about["digest"], "tested": about["tested"], "monitor": about["monitor"]}
    return Item(item.study, item.variant, item.seed, item.config, item.after, **kept)


def _data_key(item: Item) -> str:
    """What tells two data sections apart; the plain data module's cases don't depend on its seed."""
    data = item.config["data"]
    plain = data["class_path"] in ("medlight.data.ScanDataModule", "medlight.data.datamodule.ScanDataModule")
    arguments = {k: v for k, v in data["init_args"].items() if not (plain and k == "seed")}
    return json.dumps([item.variant, data["class_path"], arguments], sort_keys=True, default=str)


def _check_metrics(study: Study, known: dict[str, dict[str, Any]]) -> None:
    for index, entry in enumerate(study.expected):
        for variant, metric in entry.sides:
            about = known[variant]
            if metric not in about["metrics"]:
                near = nearest(metric, about["metrics"])
                raise UsageError(
                    f"{study.folder / FILE}: expected[{index}]: variant {variant} does not log {metric!r}{near}"
                )
            if metric.startswith("test/") and not about["tested"]:
                raise UsageError(
                    f"{study.folder / FILE}: expected[{index}]: {metric!r}, but {variant} has no test cases"
                )


def standing(item: Item, config: Config, runs: Iterable[Run]) -> Standing:
    """What there is of an item among a study's runs (newest first).

    Raises: UsageError where another process works on it.
    """
    digest = config_digest(config)
    cut: list[Run] = []
    obsolete: list[str] = []
    note = ""
    for run in runs:
        tags = run.data.tags
        if tags.get("medlight.config_digest") != digest or tags.get("medlight.name") != item.name:
            continue
        state = tags.get("medlight.state")
        if state == SUPERSEDED:
            continue
        if store.is_alive(run):
            raise UsageError(f"{item.name}: another process works on run {run.info.run_id}; stop it first")
        differs = difference(run.info.run_id, item.data_digest, class_paths(config)) or _other_weights(tags, config)
        same = not differs
        note = note or (f"run {run.info.run_id[:8]} is of other {differs}" if differs else "")
        if state == "complete" and same:
            measured = not item.tested or any(name.startswith("test/") for name in run.data.metrics)
            return Standing("done" if measured else "test", run.info.run_id, spent(run))
        if run.info.status == "FINISHED":
            continue
        if same and not cut:
            cut.append(run)
        else:
            obsolete.append(run.info.run_id)
    if cut:
        return Standing("resume", cut[0].info.run_id, spent(cut[0]), tuple(obsolete))
    return Standing("start", obsolete=tuple(obsolete), note=note)


@cache
def difference(run_id: str, data_digest: str, named: tuple[str, ...] = ()) -> str:
    """What a run was made with that is not as it is today: ``code (medlight.tasks.base)``, ``data``; '' for nothing.

    Of a run that was resumed, at its start or any time later. named: the import paths in its configuration.
    """
    try:
        manifests = recorded.manifests(run_id)
    except (MedlightError, ValueError):
        manifests = []
    if not manifests:
        return "code, as far as known"  # it was cut before it wrote down what it is
    if any(manifest["data"]["digest"] != data_digest for manifest in manifests):
        return "data"
    found = [name for manifest in manifests for name in changed_code(manifest.get("code") or {"medlight": ""}, named)]
    changed = list(dict.fromkeys(found))
    listed = ", ".join(changed[:3]) + (" ..." if len(changed) > 3 else "")
    return f"code ({listed})" if changed else ""


def _other_weights(tags: Mapping[str, str], config: Config) -> str:
    """``initial weights`` where a run began with others than there are today; '' where not."""
    from medlight.launch import weights

    try:
        now = weights.digest(config)
    except MedlightError:  # the fit itself says what is wrong with them
        return WEIGHTS
    return WEIGHTS if tags.get(recorded.WEIGHTS) != now else ""


def spent(run: Run) -> float:
    """Minutes that a run has taken: as it was written at its end, else from its process's start to its last sign."""
    tags = run.data.tags
    if "medlight.minutes" in tags:
        return float(tags["medlight.minutes"])
    newest = max((metric.timestamp for metric in run.data._metric_objs), default=0) / 1000
    last = max(0.0, newest - float(tags.get("medlight.process_start", newest))) / 60
    return float(tags.get("medlight.minutes_before", 0)) + last


def set_aside(run_ids: Iterable[str]) -> None:
    """Mark cut runs that can't be gone on with, so that nobody resumes them."""
    for run_id in run_ids:
        store.client().set_tag(run_id, "medlight.state", SUPERSEDED)
        store.client().set_terminated(run_id, "KILLED")
