"""Splits: which cases train, validate and test. A subject is never torn apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from medlight.config import load_yaml, nearest
from medlight.errors import UsageError
from medlight.prepare.case import Case
from medlight.prepare.paths import data_path
from medlight.prepare.sources import read_json


@dataclass(frozen=True)
class Split:
    """Case ids by use."""

    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, list[str]]:
        """Return plain lists, as `SplitFile` reads them."""
        return {name: list(ids) for name, ids in asdict(self).items()}


@runtime_checkable
class Splitter(Protocol):
    """Anything that splits cases; a user's own class may stand wherever one of these does."""

    def assign(self, cases: Sequence[Case], skipped: Collection[str] = ()) -> Split:
        """Split the cases; ``skipped`` are ids that were left out as unusable."""
        ...


class GivenSplit:
    """Each case's own split, as the manifest or the data set gives it."""

    def assign(self, cases: Sequence[Case], skipped: Collection[str] = ()) -> Split:
        """Split the cases; one without a split is a UsageError."""
        for case in cases:
            if case.split not in ("train", "val", "test"):
                raise UsageError(f"{case.id}: has no split (train, val or test); fill it in or use RandomSplit")
        found = {name: tuple(case.id for case in cases if case.split == name) for name in ("train", "val", "test")}
        return _checked(Split(**found), cases)


class RandomSplit:
    """A share of the cases drawn for validation and test; the same on any machine for the same seed and cases."""

    def __init__(self, val: float = 0.2, test: float = 0.0, seed: int = 0) -> None:
        if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
            raise UsageError(f"RandomSplit: val {val} and test {test} must be shares that leave some for training")
        self.val, self.test, self.seed = val, test, seed

    def assign(self, cases: Sequence[Case], skipped: Collection[str] = ()) -> Split:
        """Draw whole subjects until each share is reached; at least one where a share was asked for."""
        groups = _shuffled(cases, self.seed)
        test = _take(groups, self.test, len(cases))
        val = _take(groups, self.val, len(cases))
        return _checked(_split(cases, val, test), cases)


class KFold:
    """One of k folds for validation; a share may be set aside for test first, the same for all folds."""

    def __init__(self, folds: int = 5, fold: int = 0, seed: int = 0, test: float = 0.0) -> None:
        if folds < 2 or not 0 <= fold < folds:
            raise UsageError(f"KFold: fold {fold} of {folds} does not exist; folds count from 0 to folds - 1")
        if not 0 <= test < 1:
            raise UsageError(f"KFold: test {test} must be a share below 1")
        self.folds, self.fold, self.seed, self.test = folds, fold, seed, test

    def assign(self, cases: Sequence[Case], skipped: Collection[str] = ()) -> Split:
        """Deal subjects to folds, the next always to the smallest."""
        groups = _shuffled(cases, self.seed)
        test = _take(groups, self.test, len(cases))
        if len(groups) < self.folds:
            raise UsageError(f"KFold: {len(groups)} subjects are too few for {self.folds} folds")
        folds: list[list[str]] = [[] for _ in range(self.folds)]
        for group in sorted(groups, key=len, reverse=True):
            min(folds, key=len).extend(group)
        return _checked(_split(cases, folds[self.fold], test), cases)


class SplitFile:
    """A committed split: a JSON or YAML file with lists of ids under train, val and test.

    DICOM cases that no manifest names go by their content; on a terminal ``medlight data prepare`` says which is which.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def assign(self, cases: Sequence[Case], skipped: Collection[str] = ()) -> Split:
        """Read the split; an id that is no case is a UsageError. Cases that the file doesn't list are left out."""
        file = data_path(self.path)
        listed = read_json(file) if file.suffix == ".json" else load_yaml(file)
        if not isinstance(listed, dict):
            raise UsageError(f"{self.path}: expected lists of ids under train, val and test")
        for name, ids in listed.items():
            if name not in ("train", "val", "test") or not isinstance(ids, list):
                hint = nearest(name, ("train", "val", "test"))
                raise UsageError(f"{self.path}: {name}: expected lists of ids under train, val and test{hint}")
        known = {case.id for case in cases}
        found: dict[str, tuple[str, ...]] = {}
        for name, ids in listed.items():
            found[name] = tuple(str(entry) for entry in ids if str(entry) not in skipped)
            for entry in found[name]:
                if entry not in known:
                    raise UsageError(f"{self.path}: {name}: no case has the id {entry!r}{nearest(entry, known)}")
        return _checked(Split(**found), cases)


def _shuffled(cases: Sequence[Case], seed: int) -> list[list[str]]:
    """Case ids grouped by subject, in a random order that doesn't depend on the order of the cases."""
    groups: defaultdict[tuple[bool, str], list[str]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.id):
        groups[(case.subject is None, case.subject or case.id)].append(case.id)
    keys = sorted(groups)
    return [groups[keys[place]] for place in np.random.default_rng(seed).permutation(len(keys))]


def _take(groups: list[list[str]], share: float, total: int) -> list[str]:
    """Remove whole groups from the list until a share of all cases is reached."""
    taken: list[str] = []
    if share:
        wanted = max(1, round(share * total))
        while groups and len(taken) < wanted:
            taken += groups.pop(0)
    return taken


def _split(cases: Iterable[Case], val: Collection[str], test: Collection[str]) -> Split:
    """A split in the order of the cases."""
    ids = [case.id for case in cases]
    one, two = set(val), set(test)
    return Split(
        train=tuple(name for name in ids if name not in one and name not in two),
        val=tuple(name for name in ids if name in one),
        test=tuple(name for name in ids if name in two),
    )


def _checked(split: Split, cases: Sequence[Case]) -> Split:
    """Raise UsageError where nothing is left to train on, an id stands twice, or a subject is torn apart."""
    if not split.train:
        raise UsageError(f"the split leaves no case for training ({len(split.val)} val, {len(split.test)} test)")
    subjects = {case.id: case.subject for case in cases}
    use: dict[Any, tuple[str, str]] = {}
    seen: dict[str, str] = {}
    for name, ids in split.to_dict().items():
        for entry in ids:
            if entry in seen:
                raise UsageError(f"the split lists {entry!r} twice, in {seen[entry]} and {name}; remove one")
            seen[entry] = name
            subject = subjects[entry]
            first = use.setdefault(subject, (name, entry)) if subject is not None else (name, entry)
            if first[0] != name:
                raise UsageError(f"the split tears a subject apart: {first[1]} is in {first[0]}, {entry} in {name}")
    return split
