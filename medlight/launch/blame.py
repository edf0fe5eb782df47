"""Which value of a configuration is to blame, once reading it or building from it has failed."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from jsonargparse import ArgumentParser

from medlight.config import Config, import_class, is_spec, nearest
from medlight.errors import CaseError, MedlightError, UsageError

LONGEST = 60  # characters of a value that are shown


def bad_value(config: Mapping[str, Any], hints: Mapping[str, Any], prefix: str = "") -> str | None:
    """Say which value is of another type than its hint, as ``data.batch_size: 'two' is no int``; or ``None``.

    config: values by name; classes in it are judged by the annotations of their ``__init__``.
    prefix: the dotted path of what holds the values, with a dot at its end.
    """
    for name, value in config.items():
        said = _bad(value, hints.get(name, Any), f"{prefix}{name}")
        if said:
            return said
    return None


def refusal(value: Any, hint: Any, key: str) -> UsageError | None:
    """Build what a value describes, inner classes first; returns the first refusal, with the path of its class."""
    try:
        _built(value, hint, key)
    except UsageError as error:
        return error
    return None


def bad_argument(spec: Mapping[str, Any], key: str) -> str | None:
    """As :func:`bad_value`, for the arguments of a class that is handed others besides (an optimiser's parameters)."""
    return bad_value(spec.get("init_args") or {}, hints_of(import_class(spec["class_path"])), f"{key}.")


def hints_of(cls: Any) -> dict[str, Any]:
    """The annotations of what a class's call accepts, those that it hands on to its bases included."""
    found: dict[str, Any] = {}
    for owner in inspect.getmro(cls) if inspect.isclass(cls) else (cls,):
        call = vars(owner).get("__init__") if inspect.isclass(cls) else cls
        if call is None:
            continue
        try:
            parameters = inspect.signature(call).parameters.values()
            known = typing.get_type_hints(call)
        except (TypeError, ValueError, NameError):
            break
        found = {**known, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _spec(value: Any, hint: Any) -> Mapping[str, Any] | None:
    """The value as a class to build; a dataclass may be written as its bare arguments."""
    members = [typing.get_origin(member) or member for member in _members(hint)]
    if is_spec(value):
        return None if dict in members or Mapping in members else dict(value)
    plain = next((member for member in members if dataclasses.is_dataclass(member)), None)
    if isinstance(value, Mapping) and isinstance(plain, type):
        return {"class_path": f"{plain.__module__}.{plain.__qualname__}", "init_args": dict(value)}
    return None


def _bad(value: Any, hint: Any, key: str) -> str | None:
    if hint is Any or hint is inspect.Parameter.empty:
        return None
    spec = _spec(value, hint)
    if spec is not None:
        cls = import_class(spec["class_path"], f"{key}.class_path")
        said = bad_value(spec.get("init_args") or {}, hints_of(cls), f"{key}.") or _missing(cls, spec, key)
        if said:
            return said
    elif isinstance(value, list):
        said = _bad_inside(value, key)
        if said:
            return said
    if (value is None and type(None) not in _members(hint)) or not _taken(value, hint)[0]:
        inherited = _missing_in_bases(value, key) if is_spec(value) else _bad_item(value, hint, key)
        return inherited or f"{key}: {_shown(value)} is {_not(value, hint)}"
    return None


def _bad_inside(value: list[Any], key: str) -> str | None:
    """As :func:`_bad`, for the classes in a list, or in lists in it."""
    for index, item in enumerate(value):
        inner = f"{key}.{index}"
        said = _bad(item, object, inner) if is_spec(item) else None
        said = _bad_inside(item, inner) if isinstance(item, list) else said
        if said:
            return said
    return None


def _bad_item(value: Any, hint: Any, key: str) -> str | None:
    """As :func:`_bad`, for the first item that keeps a value from being the list of its hint."""
    inner = [_args(member)[0] for member in _members(hint) if typing.get_origin(member) is list and _args(member)]
    if not isinstance(value, list) or len(inner) != 1:
        return None
    return next(filter(None, (_bad(item, inner[0], f"{key}.{index}") for index, item in enumerate(value))), None)


def _missing(cls: Any, spec: Mapping[str, Any], key: str) -> str | None:
    """An argument without default that is not there; linked and filled ones have defaults."""
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):
        return None
    given = spec.get("init_args") or {}
    for p in parameters:
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given:
            return f"{key}.{p.name}: missing; {spec['class_path']} needs it"
    return None


def _missing_in_bases(spec: Mapping[str, Any], key: str) -> str | None:
    """As :func:`_missing`, for what a class hands on to its bases."""
    cls = import_class(spec["class_path"], f"{key}.class_path")
    for owner in inspect.getmro(cls)[1:] if inspect.isclass(cls) else ():
        taken = inspect.signature(vars(owner)["__init__"]).parameters if "__init__" in vars(owner) else {}
        said = _missing(owner, spec, key) if taken and owner is not object else None
        if said or (taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values())):
            return said
    return None


def _taken(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether jsonargparse takes the value for the hint, and what it makes of it."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
    except Exception:  # a hint that jsonargparse does not judge
        return True, value
    try:
        return True, parser.parse_object({"value": copy.deepcopy(value)}).value
    except Exception:
        return False, value


def _shown(value: Any) -> str:
    if is_spec(value):
        return str(value["class_path"])
    text = "null" if value is None else repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _not(value: Any, hint: Any) -> str:
    choices = [choice for member in _members(hint) if typing.get_origin(member) is Literal for choice in _args(member)]
    if choices:
        return f"none of {', '.join(map(str, choices))}{nearest(str(value), map(str, choices))}"
    if isinstance(value, (int, float)) and str in _members(hint):
        return f"no text; put it in quotes: '{value}'"
    return "no " + " or ".join(dict.fromkeys(_name(member) for member in _members(hint)))


def _args(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint)


def _name(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), [a for a in _args(hint) if a is not ...]
    if hint in (type(None), None):
        return "null"
    if origin in (tuple, list) and inner:
        count = f"{len(inner)} " if origin is tuple and len(_args(hint)) == len(inner) else ""
        return f"list of {count}{_name(inner[0])}"
    if origin is dict and inner:
        return f"mapping of {_name(inner[0])} to {_name(inner[1])}"
    return "text" if hint is str else str(getattr(origin or hint, "__name__", hint))


def _built(value: Any, hint: Any, key: str) -> Any:
    spec = _spec(value, hint)
    if isinstance(value, list) and any(is_spec(item) or isinstance(item, list) for item in value):
        return [_built(item, object, f"{key}.{index}") for index, item in enumerate(value)]
    if spec is None:
        return value if hint is Any or is_spec(value) else _taken(value, hint)[1]
    cls = import_class(spec["class_path"], f"{key}.class_path")
    hints = hints_of(cls)
    written = spec.get("init_args") or {}
    arguments = {name: _built(inner, hints.get(name, Any), f"{key}.{name}") for name, inner in written.items()}
    return attempt(lambda: cls(**arguments), key, cls)


def attempt(build: Callable[[], Any], key: str, cls: Any) -> Any:
    """Call a class; what it raises becomes a UsageError of one line that begins with a dotted path."""
    try:
        return build()
    except CaseError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, MedlightError) and text.startswith(key.split(".")[0] + "."):
            raise UsageError(text) from error
        if isinstance(error, MedlightError) and text.split(":")[0] in hints_of(cls):
            raise UsageError(f"{key}.{text}") from error
        name = cls.__name__
        own = isinstance(error, MedlightError) or text.startswith(f"{name}: ")
        text = text.removeprefix(f"{name}: ")
        raise UsageError(f"{key}: {text}" if own else f"{key}: {name}: {text}") from error


def causes(text: str) -> list[str]:
    """The sentences in jsonargparse's report of a value that suits none of several types."""
    lines = [line.strip() for line in text.splitlines()]
    empty = ("Expected a <class", "Does not validate", "Problem with given class_path")
    return [line.removeprefix("- ") for line in lines if line.startswith("- ") and not line[2:].startswith(empty)]


def explain(config: Config, hints: Mapping[str, Any], error: Exception) -> str:
    """One line for what jsonargparse said of a configuration (sections by name), with the dotted path of its cause."""
    try:
        said = bad_value(config, hints)
        if said:
            return said
        for name, value in config.items():
            refused = refusal(value, hints.get(name, Any), name)
            if refused:
                return str(refused)
    except MedlightError as found:
        return str(found)
    found_causes = causes(str(error))
    text = found_causes[0] if found_causes else " ".join(str(error).split())
    return text if len(text) <= 4 * LONGEST else text[: 4 * LONGEST - 3] + "..."
