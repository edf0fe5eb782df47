"""A sweep.yaml, read and checked."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medlight.config import Config, check_spec, import_class, instantiate, is_spec, load_yaml, nearest
from medlight.errors import UsageError
from medlight.sweeps import space as spaces
from medlight.sweeps.space import Dimension

KEYS = (
    "study",
    "name",
    "fit",
    "space",
    "objectives",
    "sampler",
    "pruner",
    "trials",
    "workers",
    "threads",
    "memory_limit_gb",
    "storage",
    "seed",
    "export",
)
DIRECTIONS = ("maximize", "minimize")
NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Objective:
    """A metric of the fit's best epoch, and whether more or less of it is better."""

    metric: str
    direction: str


@dataclass(frozen=True)
class Sweep:
    """What a sweep.yaml says, with the command line's changes; ``config`` is the fit configuration it starts from."""

    study: str
    name: str
    config: Config
    fit_file: Path
    space: tuple[Dimension, ...]
    objectives: tuple[Objective, ...]
    sampler: Config
    pruner: Config | None
    trials: int
    workers: int
    threads: int | None
    memory_limit_gb: float | None
    storage: str | None
    seed: int
    export: Config | None
    written: Config

    @property
    def full_name(self) -> str:
        """The study's name in Optuna, and of its files."""
        return f"{self.study}-{self.name}"

    def identity(self, resolved: Config) -> dict[str, str]:
        """A digest of each part that makes trials comparable; how many there are and where they run is not in it."""
        parts = {
            "fit": resolved,
            "space": self.written["space"],
            "objectives": [[each.metric, each.direction] for each in self.objectives],
            "sampler": self.sampler,
            "pruner": self.pruner,
            "seed": self.seed,
        }
        texts = {name: json.dumps(part, sort_keys=True, default=str) for name, part in parts.items()}
        return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()}

    def build_sampler(self, before: int = 0) -> Any:
        """The Optuna sampler; its seed moves on with the trials before it, so that none is drawn again on a resume."""
        written = dict(self.sampler.get("init_args") or {})
        seed = written.pop("seed", None)
        seed = (self.seed if seed is None else seed) + before
        return _build({**self.sampler, "init_args": written}, "sampler", seed=seed)

    def build_pruner(self) -> Any:
        """The Optuna pruner; one that never prunes where the file names none."""
        return _build(self.pruner or {"class_path": "optuna.pruners.NopPruner"}, "pruner")


def load(file: Path, overrides: list[tuple[str, Any]], changes: Mapping[str, Any]) -> Sweep:
    """Read a sweep.yaml and the fit YAML it names.

    Args:
        file: the sweep.yaml; the fit YAML's path is taken from its folder.
        overrides: dotted paths and values laid over the fit configuration.
        changes: keys of the sweep given on the command line; None changes nothing.

    Raises: UsageError, one line that names the key and the nearest valid name.
    """
    from medlight.launch.resolve import read

    written = load_yaml(file)
    for key in written:
        if key not in KEYS:
            raise UsageError(f"{file}: {key}: no such key{nearest(str(key), KEYS)}")
    try:
        fit_file = file.parent / _text(written, "fit")
        config = read([str(fit_file)], overrides)
        values = {**written, **{key: value for key, value in changes.items() if value is not None}}
        return _sweep(values, config, fit_file, file)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def _sweep(values: Config, config: Config, fit_file: Path, file: Path) -> Sweep:
    study = str(values.get("study") or config.get("study") or file.resolve().parent.name)
    name = str(values.get("name") or file.stem)
    for key, text in (("study", study), ("name", name)):
        if not NAME.fullmatch(text):
            raise UsageError(f"{key}: {text!r} has characters other than letters, digits, '.', '_' and '-'")
    objectives = _objectives(values.get("objectives"))
    sampler = _class(values.get("sampler") or {"class_path": "optuna.samplers.TPESampler"}, "sampler", "BaseSampler")
    pruner = _class(values["pruner"], "pruner", "BasePruner") if values.get("pruner") else None
    if pruner and len(objectives) > 1:
        raise UsageError(
            f"pruner: can't be used with {len(objectives)} objectives (Optuna prunes by one); leave one of the two out"
        )
    sweep = Sweep(
        study=study,
        name=name,
        config={**config, "study": study},
        fit_file=fit_file,
        space=spaces.parse(values.get("space")),
        objectives=objectives,
        sampler=sampler,
        pruner=pruner,
        trials=_count(values, "trials", None),
        workers=_count(values, "workers", 1),
        threads=_count(values, "threads", 0) or None,
        memory_limit_gb=_size(values.get("memory_limit_gb")),
        storage=_storage(values.get("storage")),
        seed=_seed(values.get("seed", 0)),
        export=_export(values.get("export")),
        written=values,
    )
    sweep.build_sampler()
    sweep.build_pruner()
    return sweep


def _text(values: Config, key: str) -> str:
    if not isinstance(values.get(key), str):
        raise UsageError(f"{key}: missing" if key not in values else f"{key}: expected text, found {values[key]!r}")
    return str(values[key])


def _count(values: Config, key: str, default: int | None) -> int:
    value = values.get(key, default)
    if value is None:
        raise UsageError(f"{key}: missing")
    if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and value != default):
        raise UsageError(f"{key}: expected a whole number above 0, found {value!r}")
    return value


def _seed(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise UsageError(f"seed: expected a whole number from 0 to 2147483647, found {value!r}")
    return value


def _size(value: Any) -> float | None:
    if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0):
        raise UsageError(f"memory_limit_gb: expected a number above 0, found {value!r}")
    return value


def _storage(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or "://" not in value):
        raise UsageError("storage: expected null (a file under mlruns/optuna) or postgresql://USER@HOST/DATABASE")
    return value


def _export(value: Any) -> Config | None:
    """What becomes of the best trial: ``{to: [onnx, openvino], precision: [fp32, int8]}``; null: nothing."""
    if value is None:
        return None
    lists = isinstance(value, Mapping) and all(isinstance(names, list) and names for names in value.values())
    if not lists or set(value) - {"to", "precision"}:
        raise UsageError("export: write {to: [onnx, openvino], precision: [fp32, int8]}, or one of the two")
    from medlight.deploy.export import check_targets

    try:
        check_targets(value.get("to", ["onnx"]), value.get("precision", ["fp32"]))
    except UsageError as error:
        raise UsageError(f"export: {error}") from None
    return dict(value)


def _objectives(written: Any) -> tuple[Objective, ...]:
    if not isinstance(written, list) or not written:
        raise UsageError("objectives: write a list of {metric: val/dice, direction: maximize}")
    objectives = []
    for index, each in enumerate(written):
        key = f"objectives[{index}]"
        if not isinstance(each, Mapping):
            raise UsageError(f"{key}: expected {{metric: ..., direction: ...}}, found {each!r}")
        for word in each:
            if word not in ("metric", "direction"):
                raise UsageError(f"{key}.{word}: no such key{nearest(str(word), ('metric', 'direction'))}")
        if not isinstance(each.get("metric"), str):
            raise UsageError(f"{key}.metric: missing")
        direction = each.get("direction")
        if direction not in DIRECTIONS:
            near = nearest(str(direction), DIRECTIONS)
            raise UsageError(f"{key}.direction: {direction!r} is neither maximize nor minimize{near}")
        objectives.append(Objective(each["metric"], direction))
    if len({each.metric for each in objectives}) < len(objectives):
        raise UsageError("objectives: name a metric twice")
    return tuple(objectives)


def check_objectives(objectives: tuple[Objective, ...], logged: list[str], task: str) -> None:
    """Refuse an objective that the task does not log."""
    for index, objective in enumerate(objectives):
        if objective.metric not in logged:
            near = nearest(objective.metric, logged)
            raise UsageError(f"objectives[{index}].metric: {task} does not log {objective.metric!r}{near}")


def _class(written: Any, key: str, base: str) -> Config:
    import optuna

    module = {"BaseSampler": optuna.samplers, "BasePruner": optuna.pruners}[base]
    if not is_spec(written):
        raise UsageError(f"{key}: expected {{class_path: {module.__name__}.NAME, init_args: {{...}}}}")
    check_spec(written, key)
    cls = import_class(written["class_path"], f"{key}.class_path")
    if not (isinstance(cls, type) and issubclass(cls, getattr(module, base))):
        raise UsageError(f"{key}.class_path: {written['class_path']} is no {module.__name__}.{base}")
    return dict(written)


def _build(spec: Config, key: str, **given: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental": the user named the class
        try:
            return instantiate(spec, **given)
        except (TypeError, ValueError, ImportError) as error:
            raise UsageError(f"{key}: {spec['class_path']}: {' '.join(str(error).split())}") from None
