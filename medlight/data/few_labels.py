"""A data module in which only some of the training cases keep their label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from medlight.config import nearest
from medlight.data.datamodule import DataSignature
from medlight.data.dataset import PatchDataset
from medlight.data.sampler import DrawSampler, InTurn, Mixed, MixedSampler, Order
from medlight.data.subsets import Member, chosen, least
from medlight.data.views import ViewsDataModule, ViewsDataset
from medlight.errors import UsageError
from medlight.prepare import PreparedCase, PreparedSet


@runtime_checkable
class KeepsLabels(Protocol):
    """A splitter that says too which training cases keep their label, as that of a recorded run does."""

    def keep_labels(self, own: Callable[[], set[str]]) -> set[str]:
        """Return the ids of those cases; ``own`` gives what the data module itself would choose, or raises."""
        ...


class FewLabelsDataModule(ViewsDataModule):
    """Training on a few labelled cases and, beside them, on unlabelled ones.

    Hidden labels are not read: such a case is as one that never had a label (``is_labelled`` false, ``label`` zeros,
    ``target`` -1 or NaN), and its patches lie anywhere in the image. Cases without a label in the source are always
    among the unlabelled ones. Validation and test keep all labels.

    With ``labelled_per_batch`` each rank's batch begins with so many labelled samples, and an epoch of
    ``steps_per_epoch: null`` shows about every unlabelled case once. Labelled cases come in turn, each as often as any
    other, and so do the unlabelled ones. Without it only labelled cases are trained on: the baseline of these labels.

    Args:
        labelled: how many training cases keep their label, or the share of those that have one (above 0, up to 1.0), or
            the ids of those that keep it. A number or share is drawn from the seed: whole subjects, classes in
            proportion and none left out, and a larger one holds the smaller one's cases. Of the last subject all cases
            count, so there may be a few more.
        labelled_per_batch: labelled samples at the beginning of each rank's batch; None for labelled ones only.
        scan: arguments of `ViewsDataModule` and `ScanDataModule`.
    """

    def __init__(self, labelled: int | float | list[str], labelled_per_batch: int | None = None, **scan: Any) -> None:
        super().__init__(**scan)
        self.labelled = _sound(labelled)
        self.labelled_per_batch = labelled_per_batch
        if labelled_per_batch is not None and not 1 <= labelled_per_batch < self.batch_size:
            raise UsageError(
                f"data.labelled_per_batch: {labelled_per_batch} of a batch of {self.batch_size} leaves no place for "
                f"{'labelled' if labelled_per_batch < 1 else 'unlabelled'} samples; write a whole number from 1 to "
                "batch_size - 1, or null to train on labelled cases only"
            )
        self.labelled_ids: tuple[str, ...] = ()

    def _take(self, done: PreparedSet) -> None:
        super()._take(done)
        train = self.prepared["train"]
        try:
            kept = self._kept(train)
        except UsageError:
            self.prepared = {}  # a second setup must not find labels that ought to be hidden
            raise
        self.labelled_ids = tuple(case.case.id for case in train if case.case.id in kept)
        self.prepared["train"] = [case if case.case.id in kept else without_label(case) for case in train]

    def _kept(self, train: Sequence[PreparedCase]) -> set[str]:
        """Ids of the cases that keep their label; UsageError where there are none, or none others, or no such ones."""
        members = [self._member(case) for case in train if self._is_labelled(case)]
        if not members:
            raise UsageError("data.labelled: no training case has a label; give some labels, or use ViewsDataModule")
        if isinstance(self.splitter, KeepsLabels):
            kept = self.splitter.keep_labels(lambda: self._chosen(members)) & {member.id for member in members}
        else:
            kept = self._chosen(members)
        missing = _classes(members) - _classes([member for member in members if member.id in kept])
        if missing:
            mend = "list a case of it"
            if not isinstance(self.labelled, list):
                mend = f"{least(members, self.seed)} labelled cases have all"
            raise UsageError(f"data.labelled: {len(kept)} cases leave out {', '.join(sorted(missing))}; {mend}")
        if self.labelled_per_batch is not None and len(kept) == len(train):
            raise UsageError(
                f"data.labelled: all {len(train)} training cases are labelled, none is left as an unlabelled one; "
                "write fewer, or labelled_per_batch: null to train on labelled cases only"
            )
        return kept

    def _chosen(self, members: Sequence[Member]) -> set[str]:
        """Ids of the cases that keep their label, as ``labelled`` says."""
        labelled = self.labelled
        return self._listed(labelled, members) if isinstance(labelled, list) else self._drawn(labelled, members)

    def _drawn(self, labelled: int | float, members: Sequence[Member]) -> set[str]:
        count = max(1, round(labelled * len(members))) if isinstance(labelled, float) else labelled
        if count > len(members):
            raise UsageError(f"data.labelled: {count} is more than the {len(members)} training cases that have labels")
        return chosen(members, count, self.seed)

    def _listed(self, ids: Sequence[str], members: Sequence[Member]) -> set[str]:
        known = {member.id for member in members}
        parts = {name: part for part, names in self.split.to_dict().items() for name in names}
        for name in ids:
            if name not in parts:
                raise UsageError(f"data.labelled: no training case has the id {name!r}{nearest(name, known)}")
            if name not in known:
                why = "has no label" if parts[name] == "train" else f"is in {parts[name]}, not in train"
                raise UsageError(f"data.labelled: case {name!r} {why}; remove it from the list")
        return set(ids)

    def _is_labelled(self, case: PreparedCase) -> bool:
        """Whether a case has what the data set's cases are labelled with."""
        schema = self._schema
        has_label, has_target = case.has_label or not schema.values, case.case.target is not None or not schema.targets
        return bool(schema.values or schema.targets) and has_label and has_target

    def _member(self, case: PreparedCase) -> Member:
        names = {label.value: label.name for label in self.labels}
        found = {f"label {names.get(value, value)!r}" for value, count in case.counts.items() if value and count}
        target = case.case.target
        if isinstance(target, int):
            found.add(self._class(target))
        elif target is not None and self.multilabel:
            found |= {self._class(number) for number, value in enumerate(target) if value}
        return Member(case.case.id, case.case.subject, frozenset(found))

    def _class(self, number: int) -> str:
        return f"class {(self.classes[number] if number < len(self.classes) else number)!r}"

    def signature(self) -> DataSignature:
        """As the parent's, with ``few_labels``: how many training cases have a label and have none, and the mixture."""
        unlabelled = len(self.prepared["train"]) - len(self.labelled_ids)
        few = {
            "labelled": len(self.labelled_ids),
            "unlabelled": unlabelled,
            "labelled_per_batch": self.labelled_per_batch,
        }
        return {**super().signature(), "few_labels": few}

    def batches(self, ranks: int = 1) -> int:
        """Return how many training batches an epoch has for each of so many ranks."""
        first = self.labelled_per_batch
        others = len(self.labelled_ids) if first is None else len(self.prepared["train"]) - len(self.labelled_ids)
        return self.steps_per_epoch or max(1, round(others / ((self.batch_size - (first or 0)) * ranks)))

    def _sampler(self, rank: int, world: int) -> DrawSampler:
        first, steps = self.labelled_per_batch, self.batches(world)
        if first is None:
            return DrawSampler(steps, self.batch_size, rank, world)
        return MixedSampler(steps, self.batch_size, first, rank, world)

    def _patches(self, world: int) -> PatchDataset:
        return ViewsDataset(self._reader("train"), self._patch, self.augment, self.seed, self.views, self._order(world))

    def _order(self, world: int) -> Order:
        kept = set(self.labelled_ids)
        train = [case.case.id for case in self.prepared["train"]]
        labelled = InTurn(self.seed, [number for number, name in enumerate(train) if name in kept])
        if self.labelled_per_batch is None:
            return labelled
        others = InTurn(self.seed, [number for number, name in enumerate(train) if name not in kept], stream=1)
        return Mixed(labelled, others, self.labelled_per_batch * world, self.batch_size * world)


def without_label(prepared: PreparedCase) -> PreparedCase:
    """A case as if it had never been labelled: nothing that was drawn or written of it can be read any more."""
    places = {name: place for name, place in prepared.places.items() if name == "image"}
    bare = replace(prepared.case, label=None, target=None, boxes=())
    return replace(prepared, case=bare, places=places, values=(), counts={})


def _classes(members: Sequence[Member]) -> set[str]:
    return {name for member in members for name in member.classes}


def _sound(labelled: int | float | list[str]) -> int | float | list[str]:
    """Refuse what can be no number, share or list of cases."""
    if isinstance(labelled, list):
        twice = [name for name, count in Counter(labelled).items() if count > 1]
        if twice or not labelled:
            raise UsageError(
                f"data.labelled: lists {twice[0]!r} twice; remove one" if twice else "data.labelled: lists no case"
            )
    elif isinstance(labelled, bool) or (isinstance(labelled, float) and not 0 < labelled <= 1):
        raise UsageError(f"data.labelled: {labelled} is no share; write one above 0 up to 1.0, or a number of cases")
    elif not isinstance(labelled, float) and labelled < 1:
        raise UsageError(f"data.labelled: {labelled} leaves no labelled case; write a whole number of at least 1")
    return labelled
