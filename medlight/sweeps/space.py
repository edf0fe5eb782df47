"""The search space of a sweep: typed dotted paths over a fit configuration.

    space:
      model.optimizer.lr: {type: float, low: 1e-4, high: 1e-2, log: true}
      data.batch_size: {type: categorical, choices: [2, 4]}
      model.network:
        type: categorical
        choices:
          unet: {class_path: monai.networks.nets.UNet, init_args: {...}, space: {num_res_units: {type: int, ...}}}
          dynunet: {class_path: monai.networks.nets.DynUNet, init_args: {...}}

A choice of classes has its own space, with paths inside that class; its parameters are named path.choice.inner path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medlight.config import Config, arguments, check_spec, get_path, import_class, is_spec, nearest, set_path
from medlight.errors import UsageError

Kind = Literal["float", "int", "categorical"]
KEYS: dict[str, tuple[str, ...]] = {
    "float": ("type", "low", "high", "log", "step"),
    "int": ("type", "low", "high", "log", "step"),
    "categorical": ("type", "choices"),
}


@dataclass(frozen=True)
class Choice:
    """One of several classes, with the space of its own."""

    spec: Config
    space: tuple[Dimension, ...] = ()


@dataclass(frozen=True)
class Dimension:
    """One searched value.

    Args:
        name: the parameter's name in Optuna and MLflow.
        path: where it goes in the configuration (inside its class, for a choice's own space).
        choices: what is chosen from, by the label that Optuna keeps.
    """

    name: str
    path: str
    type: Kind
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: dict[str | int | float | bool | None, Any] = field(default_factory=dict)

    def suggest(self, trial: Any) -> Any:
        """Ask an Optuna trial for a value: a number or a choice's label."""
        match self.type:
            case "float":
                return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
            case "int":
                low, high, step = int(self.low), int(self.high), int(self.step or 1)
                return trial.suggest_int(self.name, low, high, step=step, log=self.log)
            case "categorical":
                return trial.suggest_categorical(self.name, list(self.choices))

    def examples(self) -> list[Any]:
        """The values at its ends, or every choice's label."""
        if self.type == "categorical":
            return list(self.choices)
        return [int(end) if self.type == "int" else float(end) for end in (self.low, self.high)]


def suggest(space: tuple[Dimension, ...], config: Config, trial: Any) -> Config:
    """Return the configuration with the values that an Optuna trial suggests."""
    for dimension in space:
        value = dimension.suggest(trial)
        if dimension.type == "categorical":
            value = dimension.choices[value]
        if isinstance(value, Choice):
            value = suggest(value.space, value.spec, trial)
        config = set_path(config, dimension.path, value)
    return config


def parse(written: Any, key: str = "space", name: str = "") -> tuple[Dimension, ...]:
    """Read the space of a sweep.yaml.

    Raises: UsageError that names the key.
    """
    if not isinstance(written, Mapping) or not written:
        raise UsageError(f"{key}: write at least one PATH: {{type: float|int|categorical, ...}}")
    space = tuple(_dimension(path, value, f"{key}.{path}", f"{name}{path}") for path, value in written.items())
    for dimension in space:
        outer = next((other for other in space if dimension.path.startswith(f"{other.path}.")), None)
        if outer:
            raise UsageError(
                f"{key}.{dimension.path}: lies inside {outer.path!r}, which is searched too; "
                f"put it into the space of that one's choices"
            )
    return space


def _dimension(path: str, written: Any, key: str, name: str) -> Dimension:
    if not isinstance(written, Mapping):
        raise UsageError(f"{key}: expected {{type: float|int|categorical, ...}}, found {written!r}")
    kind = written.get("type")
    if kind not in KEYS:
        raise UsageError(f"{key}.type: {kind!r} is none of {', '.join(KEYS)}{nearest(str(kind), KEYS)}")
    for word in written:
        if word not in KEYS[kind]:
            raise UsageError(f"{key}.{word}: a space of type {kind} has no such key{nearest(str(word), KEYS[kind])}")
    if kind == "categorical":
        return Dimension(name, path, "categorical", choices=_choices(written.get("choices"), f"{key}.choices", name))
    return _range(path, written, key, name)


def _range(path: str, written: Mapping[str, Any], key: str, name: str) -> Dimension:
    kind = written["type"]
    for word in ("low", "high"):
        if word not in written:
            raise UsageError(f"{key}.{word}: missing")
    for word in ("low", "high", "step"):
        value = written.get(word)
        number = isinstance(value, int if kind == "int" else (int, float)) and not isinstance(value, bool)
        if not number and not (word == "step" and value is None):
            raise UsageError(f"{key}.{word}: expected {'an int' if kind == 'int' else 'a number'}, found {value!r}")
    low, high, step, log = written["low"], written["high"], written.get("step"), written.get("log", False)
    if not isinstance(log, bool):
        raise UsageError(f"{key}.log: expected true or false, found {log!r}")
    if not low <= high:
        raise UsageError(f"{key}.low: {low:g} is above high, {high:g}")
    if log and low <= 0:
        raise UsageError(f"{key}.low: {low:g} with log: true; a logarithmic range starts above 0")
    if step is not None and (step <= 0 or log):
        raise UsageError(f"{key}.step: " + ("can't be used with log: true" if log else f"{step:g} is not above 0"))
    return Dimension(name, path, kind, low, high, log, step)


def _choices(written: Any, key: str, name: str) -> dict[str | int | float | bool | None, Any]:
    if not isinstance(written, (list, Mapping)) or not written:
        raise UsageError(f"{key}: write a list of values, or NAME: {{class_path, init_args, space}}")
    if isinstance(written, Mapping):
        return {str(label): _class_choice(spec, f"{key}.{label}", f"{name}.{label}") for label, spec in written.items()}
    choices: dict[str | int | float | bool | None, Any] = {}
    for index, value in enumerate(written):
        if isinstance(value, Mapping):
            raise UsageError(f"{key}[{index}]: give classes names: choices: {{NAME: {{class_path, init_args}}}}")
        choices[json.dumps(value) if isinstance(value, list) else value] = value
    if len(choices) < len(written):
        raise UsageError(f"{key}: holds a value twice")
    return choices


def _class_choice(written: Any, key: str, name: str) -> Choice:
    if not is_spec(written):
        raise UsageError(f"{key}: expected {{class_path, init_args, space}}, found {written!r}")
    spec = {word: value for word, value in written.items() if word != "space"}
    if any(word not in ("class_path", "init_args") for word in spec):
        wrong = next(word for word in spec if word not in ("class_path", "init_args"))
        raise UsageError(f"{key}.{wrong}: no such key{nearest(wrong, ('class_path', 'init_args', 'space'))}")
    spec["init_args"] = dict(spec.get("init_args") or {})
    check_spec(spec, key)
    inner = parse(written["space"], f"{key}.space", f"{name}.") if written.get("space") else ()
    for dimension in inner:
        check_path(spec, dimension.path, f"{key}.space.{dimension.path}", str(written["class_path"]))
    return Choice(spec, inner)


def check_paths(space: tuple[Dimension, ...], config: Config, file: str) -> None:
    """Refuse a path that does not lead into the (resolved) configuration.

    Raises: UsageError that names the path and the nearest valid one.
    """
    for dimension in space:
        check_path(config, dimension.path, f"space.{dimension.path}", file)


def check_path(config: Config, path: str, key: str, where: str) -> None:
    """Refuse a path that is neither in the configuration nor an argument that a class in it has."""
    try:
        get_path(config, path)
        return
    except KeyError:
        pass
    outer, _, last = path.rpartition(".")
    names: set[str] = set()
    try:
        node = get_path(config, outer) if outer else config
        if is_spec(node):
            names, open_ended = arguments(import_class(node["class_path"]))
            if last in names or open_ended:
                return
    except KeyError:
        pass
    near = [f"{outer}.{name}" if outer else name for name in names] + list(_paths(config))
    raise UsageError(f"{key}: {where} has no such key{nearest(path, near)}")


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted path into a configuration, as people write it: without init_args."""
    if is_spec(node):
        inner = node.get("init_args") or {}
        names, _ = arguments(import_class(node["class_path"]))
        yield from (f"{prefix}{name}" for name in names if name not in inner)
        yield from _paths(inner, prefix)
    elif isinstance(node, Mapping):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _paths(value, f"{prefix}{name}.")


def corners(space: tuple[Dimension, ...], config: Config) -> Iterator[tuple[str, Config]]:
    """The configuration with each end of each range and each choice in turn, and the key that put it there."""
    for dimension in space:
        for example in dimension.examples():
            value = dimension.choices[example] if dimension.type == "categorical" else example
            key = f"space.{dimension.name}"
            if isinstance(value, Choice):
                yield f"{key}.choices.{example}", set_path(config, dimension.path, value.spec)
                for inner_key, inner in corners(value.space, value.spec):
                    yield inner_key, set_path(config, dimension.path, inner)
            else:
                yield key, set_path(config, dimension.path, value)


def names(space: tuple[Dimension, ...]) -> list[str]:
    """Every parameter's name, those of the choices' own spaces included."""
    inner = [choice.space for dimension in space for choice in dimension.choices.values() if isinstance(choice, Choice)]
    return [dimension.name for dimension in space] + [name for each in inner for name in names(each)]
