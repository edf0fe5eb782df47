"""TorchIO transforms applied to a patch: how far they look beyond it, and how their random draws are seeded."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchio as tio

from medlight.data.augment.movement import Matrix, Movement
from medlight.data.augment.spatial import RandomSpatial
from medlight.data.patches import Triple, Window, cut
from medlight.data.reach import reach_of
from medlight.data.seeding import all_seeded, torch_seeded
from medlight.errors import UsageError


@dataclass(frozen=True)
class Plan:
    """What is read and computed for one patch.

    window: the patch itself. target: the patch with what the other transforms need around it. needed: what is to be
    read (voxels of the case, perhaps outside of it). movement: the leading one, from ``needed`` to ``target``.
    """

    window: Window
    target: Window
    needed: Window
    movement: Movement | None


class Pipeline:
    """A list of transforms, applied to patches that are read with as much around them as the transforms need.

    The transforms are copied and told not to copy their input, which belongs to nobody else. The first spatial one, if
    it is a RandomSpatial, is drawn before anything is read: then only what that very movement needs is read.
    """

    def __init__(self, transforms: Sequence[tio.Transform], key: str = "data.augment") -> None:
        self.key = key  # what an error calls the list
        self.transforms: list[tio.Transform] = copy.deepcopy(list(transforms))
        every = [inner for transform in self.transforms for inner in walk(transform)]
        for transform in every:
            transform.copy = False
        self._lead = self._find_lead()
        self._reaches: dict[tuple[Triple, bytes], Triple] = {}
        self._foreign = any(not type(t).__module__.startswith(("torchio.", "medlight.")) for t in every)
        self._foreign |= any(isinstance(t, tio.Lambda) for t in every)
        self._with_own_state = [t.monai_transform for t in every if isinstance(t, tio.MonaiAdapter)]

    def _find_lead(self) -> RandomSpatial | None:
        """The first transform that looks beyond the patch, if it is one of ours."""
        looking = (t for t in self.transforms if isinstance(t, RandomSpatial) or any(reach_of(t, (32,) * 3, np.eye(4))))
        first = next(looking, None)
        return first if isinstance(first, RandomSpatial) and first.keep is None else None

    def seeded(self, number: int) -> AbstractContextManager[None]:
        """A block in which all that the transforms draw is determined by ``number``."""
        for order, transform in enumerate(self._with_own_state):
            if hasattr(transform, "set_random_state"):
                transform.set_random_state(seed=(number + order) % 2**32)
        return all_seeded(number) if self._foreign else torch_seeded(number)

    def plan(self, window: Window, affine: Matrix) -> Plan:
        """Draw the leading movement, if there is one, and say what is to be read for a patch."""
        target = window.wider(self._reach(window.size, affine))
        if self._lead is None or torch.rand(1).item() > self._lead.probability:
            return Plan(window, target, target, None)
        movement = self._lead.get_params(target.size, affine)
        return Plan(window, target, target.wider(movement.reach(target.size)), movement)

    def _reach(self, size: Triple, affine: Matrix) -> Triple:
        """How far the transforms but the leading one look beyond a patch, all together."""
        key = (size, affine[:3, :3].tobytes())
        if key not in self._reaches:
            others = [reach_of(t, size, affine) for t in self.transforms if t is not self._lead]
            i, j, k = (sum(reach[axis] for reach in others) for axis in range(3))
            self._reaches = {key: (i, j, k)}  # the last one only: spacings seldom differ
        return self._reaches[key]

    def run(self, subject: tio.Subject, slab: Window, plan: Plan) -> tio.Subject:
        """Transform a subject that holds the ``slab`` part of a case, and cut the planned patch out of it.

        Raises UsageError where a transform changed the shape.
        """
        target = plan.target.seen_from(slab)
        if plan.movement is None:
            cut_all(subject, target)
        for transform in self.transforms:
            if transform is not self._lead:
                subject = transform(subject)
            elif plan.movement is not None:
                self._lead.move(subject, plan.movement, target)
                cut_all(subject, target, moved=self._lead.get_images(subject))
        for image in subject.get_images(intensity_only=False):
            if tuple(image.spatial_shape) != plan.target.size:
                raise UsageError(
                    f"{self.key}: the transforms turned a patch of {plan.target.size} voxels into "
                    f"{tuple(image.spatial_shape)}; leave out those that change the shape"
                )
        cut_all(subject, plan.window.seen_from(plan.target))
        return subject


def cut_all(subject: tio.Subject, window: Window, moved: Sequence[tio.Image] = ()) -> None:
    """Cut a window out of all images, and bring their affines there; ``moved`` ones have been cut already."""
    for image in subject.get_images(intensity_only=False):
        if not any(image is other for other in moved):
            image.set_data(cut(image.data, window))
        if any(window.low):
            affine = image.affine.copy()
            affine[:3, 3] += affine[:3, :3] @ window.low
            image.affine = affine


def walk(transform: tio.Transform) -> Iterator[tio.Transform]:
    """A transform and those it is composed of."""
    yield transform
    inner: Any = getattr(transform, "transforms", None) or getattr(transform, "transforms_dict", None) or ()
    for child in inner:
        yield from walk(child)
