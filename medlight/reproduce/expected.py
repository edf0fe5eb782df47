"""A study folder: ``expected.yaml`` says which variants there are and what is expected of them.

    study: medmnist
    paper: Yang et al., MedMNIST v2, Scientific Data 2023
    seeds: 3
    variants:                                    # name -> YAML files of this folder, later over earlier
      breast: [base.yaml, breast.yaml]
      finetune: {files: [base.yaml, finetune.yaml], after: pretrain}
    expected:
      - {variant: breast, metric: test/auroc, value: 0.901, tolerance: 0.02, reason: ..., source: ...}
      - {claim: "finetune.test/dice > scratch.test/dice", source: ...}
    deviations: [what is not as in the paper]
    quick: {trainer.max_epochs: 1}               # the smoke budget's overrides

``pretrained: variant:pretrain`` in a variant's YAML means the run of that variant with the same seed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medlight.config import load_yaml, nearest
from medlight.errors import UsageError

FILE = "expected.yaml"
Budget = Literal["quick", "full"]
Side = tuple[str, str]  # variant, metric
_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,59}")  # names files, as a study does: 255 bytes at most
_STUDY = re.compile(r"\w[\w .-]{0,59}")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_KEYS = ("study", "paper", "source", "seeds", "variants", "expected", "deviations", "quick")
_VALUE_KEYS = ("variant", "metric", "value", "tolerance", "reason", "source", "at_least")
_CLAIM_KEYS = ("claim", "reason", "source")


@dataclass(frozen=True)
class Variant:
    """One way of learning: its files, and the variant whose run it starts from."""

    name: str
    files: tuple[str, ...]
    after: str | None = None


@dataclass(frozen=True)
class Value:
    """A published figure. ``at_least``: only a lower one speaks against it."""

    variant: str
    metric: str
    value: float
    tolerance: float
    reason: str
    source: str
    at_least: bool = False

    @property
    def sides(self) -> list[Side]:
        """What has to be measured."""
        return [(self.variant, self.metric)]


@dataclass(frozen=True)
class Claim:
    """``greater`` is above ``smaller``; one of the two may be a number."""

    text: str
    greater: Side | float
    smaller: Side | float
    source: str
    reason: str = ""

    @property
    def sides(self) -> list[Side]:
        """What has to be measured."""
        return [side for side in (self.greater, self.smaller) if not isinstance(side, float)]


@dataclass(frozen=True)
class Study:
    """A study folder as it is written."""

    folder: Path
    name: str
    paper: str
    source: str
    seeds: int
    variants: dict[str, Variant]
    expected: list[Value | Claim]
    deviations: list[str] = field(default_factory=list)
    quick: dict[str, Any] = field(default_factory=dict)


def read(folder: Path) -> Study:
    """Read a study folder.

    Raises: UsageError, one line that names the file, the key and the nearest valid name.
    """
    if folder.name == FILE:
        folder = folder.parent
    if folder.is_dir() and not (folder / FILE).is_file():
        raise UsageError(f"{folder}: no {FILE} in this folder, which says what is expected of a study")
    if not folder.is_dir():
        near = nearest(folder.name, [p.parent.name for p in folder.parent.glob(f"*/{FILE}")])
        near = near or "; medlight reproduce --list FOLDER shows those in a folder"
        raise UsageError(f"{folder}: no such study folder{near}")
    try:
        return _study(folder, load_yaml(folder / FILE))
    except UsageError as error:
        where = str(folder / FILE)
        raise UsageError(str(error) if where in str(error) else f"{where}: {error}") from None


def _study(folder: Path, written: dict[str, Any]) -> Study:
    _known(written, _KEYS, "")
    variants = _variants(folder, _mapping(written, "variants", "name: [base.yaml, own.yaml]"))
    entries = written.get("expected")
    if not isinstance(entries, list) or not entries:
        raise UsageError("expected: write a list of values and claims")
    seeds = written.get("seeds", 3)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise UsageError(f"seeds: {seeds!r}; write a whole number of at least 1")
    deviations = written.get("deviations") or []
    if not isinstance(deviations, list):
        raise UsageError("deviations: write a list of sentences")
    return Study(
        folder=folder,
        name=_name(written, folder),
        paper=_text(written, "paper", ""),
        source=_text(written, "source", ""),
        seeds=seeds,
        variants=variants,
        expected=[_entry(entry, f"expected[{i}]", variants) for i, entry in enumerate(entries)],
        deviations=[" ".join(str(each).split()) for each in deviations],
        quick=_quick(written),
    )


def _quick(written: dict[str, Any]) -> dict[str, Any]:
    found = _mapping(written, "quick", "trainer.max_epochs: 1") if written.get("quick") else {}
    for key in found:
        if not isinstance(key, str):
            raise UsageError(f"quick.{key}: no key of a fit; write one as trainer.max_epochs: 1")
    return found


def _name(written: dict[str, Any], folder: Path) -> str:
    name = _text(written, "study", folder.resolve().name)
    if not _STUDY.fullmatch(name):
        raise UsageError(
            f"study: {name!r}; a study's name has letters, digits, spaces, '.', '-' and '_' only, at most 60"
        )
    return name


def _known(written: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in written:
        if key not in keys:
            raise UsageError(f"{where}{key}: no such key{nearest(str(key), keys)}")


def _mapping(written: Mapping[str, Any], key: str, example: str) -> dict[str, Any]:
    value = written.get(key)
    if not isinstance(value, dict) or not value:
        raise UsageError(f"{key}: expected keys and values, as {example}")
    return value


def _text(written: Mapping[str, Any], key: str, default: str | None = None, where: str = "") -> str:
    value = written.get(key, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise UsageError(f"{where}{key}: {'missing' if value is None else f'expected text, found {value!r}'}")
    return " ".join(value.split())


def _variants(folder: Path, written: dict[str, Any]) -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    for name, value in written.items():
        key = f"variants.{name}"
        if not _NAME.fullmatch(str(name)):
            raise UsageError(f"{key}: a variant's name has letters, digits, - and _ only, at most 60")
        entry = value if isinstance(value, dict) else {"files": value}
        _known(entry, ("files", "after"), f"{key}.")
        files = [entry.get("files")] if isinstance(entry.get("files"), str) else entry.get("files")
        if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
            raise UsageError(f"{key}: expected a list of YAML files, as [base.yaml, own.yaml]")
        for file in files:
            if not (folder / file).is_file():
                near = nearest(file, [p.name for p in folder.glob("*.y*ml") if p.name != FILE])
                raise UsageError(f"{key}: no file {file!r} in {folder}{near}")
        after = entry.get("after")
        if after is not None and not isinstance(after, str):
            raise UsageError(f"{key}.after: expected a variant's name, found {after!r}")
        found[str(name)] = Variant(str(name), tuple(files), after)
    for variant in found.values():
        _check_after(variant, found)
    return found


def _check_after(variant: Variant, variants: dict[str, Variant]) -> None:
    seen, last = [variant.name], variant
    while last.after is not None:
        if last.after not in variants:
            near = nearest(str(last.after), variants)
            raise UsageError(f"variants.{last.name}.after: no variant {last.after!r}{near}")
        if last.after in seen:
            raise UsageError(f"variants.{variant.name}.after: goes in a circle ({' -> '.join([*seen, last.after])})")
        last = variants[last.after]
        seen.append(last.name)


def _entry(written: Any, key: str, variants: dict[str, Variant]) -> Value | Claim:
    if not isinstance(written, dict):
        raise UsageError(f"{key}: expected {{variant, metric, value, ...}} or {{claim, ...}}, found {written!r}")
    return _claim(written, key, variants) if "claim" in written else _value(written, key, variants)


def _value(written: dict[str, Any], key: str, variants: dict[str, Variant]) -> Value:
    _known(written, _VALUE_KEYS, f"{key}.")
    value, tolerance = _number(written, "value", key), _number(written, "tolerance", key)
    if tolerance < 0:
        raise UsageError(f"{key}.tolerance: {tolerance:g} is below 0")
    at_least = written.get("at_least", False)
    if not isinstance(at_least, bool):
        raise UsageError(f"{key}.at_least: {at_least!r}; write true or false")
    names = [_text(written, name, None, f"{key}.") for name in ("variant", "metric")]
    variant, metric = _side(".".join(names), key, variants)
    reason, source = (_text(written, name, None, f"{key}.") for name in ("reason", "source"))
    return Value(variant, metric, value, tolerance, reason, source, at_least)


def _number(written: dict[str, Any], name: str, key: str) -> float:
    number = written.get(name)
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise UsageError(f"{key}.{name}: {'missing' if number is None else f'{number!r} is no number'}")
    return _finite(number, f"{key}.{name}")


def _finite(written: float | str, key: str) -> float:
    try:
        number = float(written)
    except OverflowError:  # a whole number of over 308 digits
        number = math.inf
    if not math.isfinite(number):
        raise UsageError(f"{key}: {number} is no finite number")
    return number


def _claim(written: dict[str, Any], key: str, variants: dict[str, Variant]) -> Claim:
    _known(written, _CLAIM_KEYS, f"{key}.")
    text = _text(written, "claim", None, f"{key}.")
    parts = re.split(r"\s*([<>])\s*", text)
    if len(parts) != 3 or not parts[0] or not parts[2] or "=" in text:
        raise UsageError(f"{key}.claim: {text!r}; write VARIANT.METRIC > VARIANT.METRIC, or a number on one side")
    sides = [
        _finite(part, f"{key}.claim") if _NUMBER.fullmatch(part) else _side(part, f"{key}.claim", variants)
        for part in parts[::2]
    ]
    greater, smaller = sides if parts[1] == ">" else sides[::-1]
    if isinstance(greater, float) and isinstance(smaller, float):
        raise UsageError(f"{key}.claim: {text!r} names no variant")
    if greater == smaller:
        raise UsageError(f"{key}.claim: {text!r} has the same on both sides")
    reason, source = (_text(written, name, "", f"{key}.") for name in ("reason", "source"))
    return Claim(text, greater, smaller, source, reason)


def _side(text: str, key: str, variants: dict[str, Variant]) -> Side:
    """``VARIANT.METRIC``; a metric without a split is one of the test cases."""
    variant, _, metric = text.partition(".")
    if variant not in variants:
        near = nearest(variant, variants) or f" (there: {', '.join(variants)})"
        raise UsageError(f"{key}: no variant {variant!r}{near}")
    if not metric:
        raise UsageError(f"{key}: {text!r} names no metric; write {variant}.test/dice")
    return variant, metric if metric.startswith(("train/", "val/", "test/")) else f"test/{metric}"
