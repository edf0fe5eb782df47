"""Which cases keep their label: subsets that hold each other, with the classes in proportion and subjects whole."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Member:
    """A case to choose from: ``classes`` are the names of those that its label or target shows."""

    id: str
    subject: str | None
    classes: frozenset[str]


def in_order(members: Sequence[Member], seed: int) -> Iterator[tuple[str, ...]]:
    """Yield the ids of one subject after the other, so that every beginning is a good subset.

    First come subjects that bring in classes not yet seen, as many as can be at a time; then always the one that keeps
    the classes closest to their shares among all members (greedy, after the stratification of Sechidis et al. 2011,
    "On the stratification of multi-label data"). Among equals a digest of seed and subject decides, so the order
    doesn't depend on the machine nor on how the cases are listed.
    """
    kinds = _kinds(members, seed)
    table = np.array(list(kinds), dtype=np.int64)  # (kinds, 1 + classes): cases, and cases of each class
    queues = [deque(sorted(queue)) for queue in kinds.values()]
    total = (table * np.array([[len(queue)] for queue in queues])).sum(axis=0)
    taken = np.zeros_like(total)
    left = np.ones(len(queues), dtype=bool)
    while left.any():
        new = ((table > 0) & (taken == 0)).sum(axis=1) * left
        candidates = left & (new == new.max())
        after = taken + table
        apart = ((after * total[0] - after[:, :1] * total).astype(float) ** 2).sum(axis=1)
        apart[~candidates] = np.inf
        best = min(np.flatnonzero(apart == apart.min()), key=lambda kind: queues[kind][0])
        taken = after[best]
        yield queues[best].popleft()[1]
        left[best] = bool(queues[best])


def _kinds(members: Sequence[Member], seed: int) -> dict[tuple[int, ...], list[tuple[str, tuple[str, ...]]]]:
    """Subjects by their number of cases and of cases of each class; each with a digest that orders them at random."""
    names = sorted({name for member in members for name in member.classes})
    subjects: defaultdict[tuple[bool, str], list[Member]] = defaultdict(list)
    for member in sorted(members, key=lambda member: member.id):
        subjects[(member.subject is None, member.subject or member.id)].append(member)
    kinds: defaultdict[tuple[int, ...], list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
    for (alone, subject), group in subjects.items():
        kind = (len(group), *(sum(name in member.classes for member in group) for name in names))
        digest = hashlib.sha256(os.fsencode(f"{seed}\0{int(alone)}\0{subject}")).hexdigest()
        kinds[kind].append((digest, tuple(member.id for member in group)))
    return dict(sorted(kinds.items()))


def chosen(members: Sequence[Member], count: int, seed: int) -> set[str]:
    """The first whole subjects that make at least ``count`` cases; a smaller count's choice is a part of it."""
    found: set[str] = set()
    for ids in in_order(members, seed):
        if len(found) >= count:
            break
        found.update(ids)
    return found


def least(members: Sequence[Member], seed: int) -> int:
    """The smallest count whose choice shows every class."""
    missing = {name for member in members for name in member.classes}
    classes = {member.id: member.classes for member in members}
    found = 0
    for ids in in_order(members, seed):
        if not missing:
            break
        missing.difference_update(*(classes[name] for name in ids))
        found += len(ids)
    return found
