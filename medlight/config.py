"""Configurations: YAML files that name classes by import path.

A class is written ``{class_path: package.Class, init_args: {...}}``. A dotted path reaches into a configuration;
``init_args`` may be left out of it: ``model.network.channels`` means ``model.init_args.network.init_args.channels``.
A path that begins with ``./`` lies beside the YAML file that names it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from medlight.errors import UsageError

Config = dict[str, Any]
SCHEDULE = ("interval", "monitor", "warmup")  # how often a schedule steps, what it watches, how long it warms up
GROUPS = ("groups", "layer_decay")  # learning rates of an optimiser's groups of parameters


class _TwiceError(yaml.YAMLError):
    """A key that stands twice in one mapping, where YAML would keep the last and say nothing."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 where 1.1 surprises: ``1e-3`` is a number, and of ``on``, ``yes``, ``true`` only the last is a boolean.

    A key may stand only once.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                raise _TwiceError(f"line {line}: {key.value!r} stands in line {lines[key.value]} too; remove one")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


_BOOLEAN = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$|^[-+]?\.\d+[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_value(text: str) -> Any:
    """Read a value as YAML would (``[4, 8]``, ``1e-3``, ``true``, ``null``, plain text)."""
    return yaml.load(text, Loader=_Loader)


def load_yaml(path: str | Path) -> Config:
    """Read one YAML mapping; a missing or broken file is a UsageError that names it."""
    file = Path(path)
    if file.is_dir():
        inside = sorted(str(p) for p in file.glob("*.y*ml"))
        raise UsageError(f"{file}: is a folder; name a file" + (f", as {inside[0]}" if inside else ""))
    if not file.is_file():
        near = nearest(file.name, [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else [])
        raise UsageError(f"{file}: no such file{near}")
    try:
        loaded = _beside(parse_value(file.read_text(encoding="utf-8")), file.parent)
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not UTF-8 text; save it as UTF-8") from None
    except _TwiceError as error:
        raise UsageError(f"{file}: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # a date that can't be
        raise UsageError(f"{file}: not valid YAML: {error}; quote what is text") from None
    except RecursionError:  # an anchor that holds itself, too
        raise UsageError(f"{file}: is nested too deeply; write plain keys and values") from None
    if loaded is None:
        raise UsageError(f"{file}: is empty; write keys and values, as study: NAME")
    if not isinstance(loaded, dict):
        raise UsageError(f"{file}: expected keys and values at the top, found {type(loaded).__name__}")
    return loaded


def _beside(value: Any, folder: Path) -> Any:
    """Turn paths that begin with ``./`` into paths beside the file that names them, relative to here if below."""
    if isinstance(value, dict):
        return {key: _beside(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_beside(inner, folder) for inner in value]
    if isinstance(value, str) and value.startswith("./"):
        path = (folder / value).resolve()
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
    return value


def merge(base: Config, over: Config) -> Config:
    """Return ``base`` with ``over`` laid on it, key by key; another ``class_path`` replaces the whole class."""
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nearest(name: object, valid: Iterable[object]) -> str:
    """Return `` (did you mean X?)`` for the closest valid name, or the empty string."""
    close = difflib.get_close_matches(str(name), list(map(str, valid)), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def is_spec(value: Any) -> bool:
    """Whether a value names a class."""
    return isinstance(value, Mapping) and "class_path" in value


def import_class(class_path: str, key: str = "class_path") -> Any:
    """Import ``package.module.Class``; what is wrong is a UsageError that names the key and the nearest name."""
    module_name, _, name = str(class_path).rpartition(".")
    if not module_name:
        raise UsageError(f"{key}: {class_path!r} is no import path; write package.module.Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{key}: {class_path!r} does not import: {error}") from None
    found = getattr(module, name, None)
    if not callable(found):
        others = [other for other in dir(module) if callable(getattr(module, other)) and other != name]
        near = [other for other in others if other.lower() == name.lower()]
        raise UsageError(f"{key}: {module_name} has no class {name!r}{nearest(name, near or others)}")
    return found


def arguments(cls: Any) -> tuple[set[str], bool]:
    """Names that a class's (or function's) call accepts, and whether it accepts any others besides."""
    names: set[str] = set()
    for owner in inspect.getmro(cls) if inspect.isclass(cls) else (cls,):
        if inspect.isclass(cls) and "__init__" not in vars(owner):
            continue
        call = vars(owner)["__init__"] if inspect.isclass(cls) else cls
        try:
            parameters = list(inspect.signature(call).parameters.values())
        except (TypeError, ValueError):
            return names, True
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names, False
    return names, True


def check_spec(spec: Mapping[str, Any], key: str) -> None:
    """Raise UsageError where a class spec, or one inside it, names an unknown class or argument."""
    beside = {"scheduler": SCHEDULE, "optimizer": GROUPS}
    valid = ("class_path", "init_args", *beside.get(key.rpartition(".")[2], ()))
    names, open_ended = arguments(import_class(spec["class_path"], f"{key}.class_path"))
    for name in spec:
        if name not in valid:
            place = f"; write it below {key}.init_args" if name in names else nearest(name, valid)
            raise UsageError(f"{key}.{name}: beside class_path there is only {', '.join(valid[1:])}{place}")
    for name, value in (spec.get("init_args") or {}).items():
        if name not in names and not open_ended:
            hint = nearest(name, names) or f"; it takes {', '.join(sorted(names)) or 'none'}"
            raise UsageError(f"{key}.init_args.{name}: {spec['class_path']} has no argument {name!r}{hint}")
        check_inside(value, f"{key}.init_args.{name}")


def check_inside(value: Any, key: str) -> None:
    """Check every class spec found in a value."""
    if is_spec(value):
        check_spec(value, key)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            check_inside(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_inside(inner, f"{key}[{index}]")


def instantiate(value: Any, **given: Any) -> Any:
    """Build what a spec names, inner specs first; ``given`` fills arguments that the class has and the spec leaves out.

    Values that are no spec are returned as they are.
    """
    if isinstance(value, list):
        return [instantiate(inner) for inner in value]
    if not is_spec(value):
        return value
    cls = import_class(value["class_path"])
    names, _ = arguments(cls)
    written = {name: instantiate(inner) for name, inner in (value.get("init_args") or {}).items()}
    filled = {name: inner for name, inner in given.items() if name in names and name not in written}
    try:
        return cls(**filled, **written)
    except TypeError as error:
        raise UsageError(f"{value['class_path']}: {error}") from error


def _child(node: Any, part: str) -> Any:
    if isinstance(node, list):
        return node[int(part)] if part.isdecimal() and int(part) < len(node) else None
    return node.get(part) if isinstance(node, Mapping) else None


def _steps(config: Config, path: str) -> list[str]:
    """Split a dotted path, with the ``init_args`` that it leaves out put in."""
    steps: list[str] = []
    node: Any = config
    for part in path.split("."):
        beside = GROUPS if steps[-1:] == ["optimizer"] else SCHEDULE
        if is_spec(node) and part not in ("class_path", "init_args", *beside):
            steps.append("init_args")
            node = node.get("init_args")
        steps.append(part)
        node = _child(node, part)
    return steps


def get_path(config: Config, path: str) -> Any:
    """Return the value at a dotted path (a number counts into a list); KeyError where there is none."""
    node: Any = config
    for part in _steps(config, path):
        there = isinstance(node, Mapping) and part in node
        if not there and not (isinstance(node, list) and part.isdecimal() and int(part) < len(node)):
            raise KeyError(path)
        node = _child(node, part)
    return node


def set_path(config: Config, path: str, value: Any) -> Config:
    """Return a copy of the configuration with the value at a dotted path replaced (or added).

    Raises: UsageError where the path leads into a plain value or past the end of a list.
    """

    def put(node: Any, steps: list[str]) -> Any:
        if not steps:
            return value
        step = steps[0]
        if isinstance(node, list) and step.isdecimal() and int(step) < len(node):
            return [put(item, steps[1:]) if i == int(step) else item for i, item in enumerate(node)]
        if node is not None and not isinstance(node, Mapping):
            raise UsageError(f"{path}: there is no {step!r} in {node!r}")
        return {**(node or {}), step: put(_child(node, step), steps[1:])}

    return dict(put(config, _steps(config, path)))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a configuration by dotted path."""
    if isinstance(config, Mapping) and config:
        return {k: v for key, value in config.items() for k, v in flatten(value, f"{prefix}{key}.").items()}
    if isinstance(config, list) and any(isinstance(item, (dict, list)) for item in config):
        return {k: v for i, value in enumerate(config) for k, v in flatten(value, f"{prefix}{i}.").items()}
    return {prefix.rstrip("."): config}


_KEY = re.compile(r"--([A-Za-z_]\w*(?:\.\w+)*)")


def parse_overrides(arguments: list[str]) -> list[tuple[str, Any]]:
    """Read ``--a.b=c`` and ``--a.b c`` as dotted paths with their values, in order.

    What is not understood (a stray word, a key without a value) is a UsageError that names it.
    """
    pairs: list[tuple[str, Any]] = []
    rest = list(arguments)
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        matched = _KEY.fullmatch(name)
        if not matched:
            raise UsageError(f"{name}: not understood; write an override as --dotted.path=VALUE")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"{name}: needs a value; write {name}=VALUE")
            text = rest.pop(0)
        if not text.strip():  # as of a variable of the shell that is not set
            raise UsageError(f"{name}: is empty; write {name}=VALUE, or {name}=null for none")
        try:
            pairs.append((matched[1], parse_value(text)))
        except (yaml.YAMLError, ValueError, RecursionError):
            raise UsageError(f"{name}: {text!r} is not a YAML value; quote it") from None
    return pairs
