"""Preparation: one case, read, checked, oriented and resampled in the scanner's own values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.errors import CaseError, MedlightError, UsageError
from medlight.prepare.case import Case, Label
from medlight.prepare.checks import check_images, checked_label
from medlight.prepare.normalise import statistics
from medlight.prepare.reading import read_ref
from medlight.prepare.resample import Shape, spaced_grid, to_grid
from medlight.scans import Volume, reorient
from medlight.scans.orientation import Affine

FOREGROUND_LIMIT = 10_000  # voxels kept for each label: enough to draw patches from, small beside the scan


@dataclass(frozen=True, eq=False)
class PreparedArrays:
    """One prepared case.

    image: float32 ``(C, I, J, K)`` in the scanner's own values. label: uint8 or uint16 ``(I, J, K)``, or None.
    stats: one entry a channel, see `normalise.statistics`. foreground: voxel indices ``(N, 3)`` of each label value
    other than 0, at most 10 000 of them, drawn with a fixed seed. values: label values before resampling.
    """

    image: npt.NDArray[np.float32]
    label: npt.NDArray[Any] | None
    affine: Affine
    channels: tuple[str, ...]
    stats: list[dict[str, Any]]
    original_affine: Affine
    original_shape: Shape
    foreground: dict[int, npt.NDArray[np.int32]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    values: tuple[int, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """How scans are brought onto a common footing.

    spacing: voxel size in millimetres along the axes of ``orientation``; None keeps each scan's own. An axis of one
    voxel (2D images) keeps its own in any case.
    orientation: where the axes point, RAS for right, anterior, superior.
    anisotropy_threshold: a thick axis, with voxels more than this many times as long as the shortest, is resampled
    linearly (images) or by the nearest slice (labels), apart from the others.
    """

    spacing: list[float] | None = None
    orientation: str = "RAS"
    anisotropy_threshold: float = 3.0

    def __post_init__(self) -> None:
        good = self.spacing is None or (len(self.spacing) == 3 and all(np.isfinite(s) and s > 0 for s in self.spacing))
        if not good:
            raise UsageError(f"spacing: {self.spacing} must be three lengths in millimetres, or null")
        if (
            not (len(self.orientation) == 3 and re.fullmatch("[LRAPSI]{3}", self.orientation))
            or len({"LRAPSI".index(code) // 2 for code in self.orientation}) != 3
        ):
            raise UsageError(f"orientation: {self.orientation!r} must be one each of L/R, A/P and S/I, such as 'RAS'")
        if not self.anisotropy_threshold >= 1:
            raise UsageError(f"anisotropy_threshold: {self.anisotropy_threshold} must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that build an equal preparation, as plain values."""
        spacing = None if self.spacing is None else [float(size) for size in self.spacing]
        return {**asdict(self), "spacing": spacing, "anisotropy_threshold": float(self.anisotropy_threshold)}

    def prepare(self, case: Case, labels: Sequence[Label] = ()) -> PreparedArrays:
        """Read and prepare a case; whatever is wrong with it is a CaseError.

        labels: where given, any other value in the label map is an error.
        """
        try:
            volumes = {name: read_ref(ref) for name, ref in case.images.items()}
            label = None if case.label is None else read_ref(case.label)
            check_images(case, volumes)
            checked = None if label is None else checked_label(case, label, next(iter(volumes.values())), labels)
        except CaseError:
            raise
        except MedlightError as error:
            raise CaseError(case.id, str(error)) from None
        return self.prepare_volumes(volumes, checked)

    def prepare_volumes(self, images: dict[str, Volume], label: npt.NDArray[Any] | None = None) -> PreparedArrays:
        """Prepare volumes in memory (used for prediction too); all are brought onto the first one's grid.

        label: a label map ``(I, J, K)`` of unsigned integers on the grid of the first image.
        """
        first = next(iter(images.values()))
        affine, shape = self._grid(first)
        parts = [to_grid(v.array, v.affine, affine, shape, "image", self.anisotropy_threshold) for v in images.values()]
        image = np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)
        moved = None
        if label is not None:
            moved = to_grid(label, first.affine, affine, shape, "label", self.anisotropy_threshold)
        foreground, counts = ({}, {}) if moved is None else _foreground(moved)
        return PreparedArrays(
            image=image,
            label=moved,
            affine=affine,
            channels=_channel_names(images),
            stats=[statistics(channel) for channel in image],
            original_affine=first.affine,
            original_shape=first.shape,
            foreground=foreground,
            counts=counts,
            values=() if label is None else tuple(np.unique(label).tolist()),
        )

    def _grid(self, first: Volume) -> tuple[Affine, Shape]:
        """The prepared grid of a case. A 2D image whose slice axis would not stay last keeps its own orientation."""
        turned, affine = reorient(first.array, first.affine, self.orientation)
        if first.shape[2] == 1 and turned.shape[-1] != 1:
            turned, affine = first.array, first.affine
        shape: Shape = turned.shape[-3:]
        return (affine, shape) if self.spacing is None else spaced_grid(affine, shape, self.spacing)


def _channel_names(images: dict[str, Volume]) -> tuple[str, ...]:
    names: list[str] = []
    for name, volume in images.items():
        count = len(volume.array)
        known = [channel.name for channel in volume.channels] or [""] * count
        names += [name] if count == 1 else [f"{name}:{known[n] or n}" for n in range(count)]
    return tuple(names)


def _foreground(label: npt.NDArray[Any]) -> tuple[dict[int, npt.NDArray[np.int32]], dict[int, int]]:
    """Voxel indices of each label value, thinned to a fixed number, and how many there were."""
    flat = label.reshape(-1)
    where = np.flatnonzero(flat)
    if where.size == 0:
        return {}, {}
    values = flat[where]
    order = np.argsort(values, kind="stable")
    where, values = where[order], values[order]
    found, starts = np.unique(values, return_index=True)
    index, counts = {}, {}
    for value, voxels in zip(found.tolist(), np.split(where, starts[1:]), strict=True):
        counts[value] = voxels.size
        if voxels.size > FOREGROUND_LIMIT:
            chosen = np.random.default_rng(value).choice(voxels.size, FOREGROUND_LIMIT, replace=False)
            voxels = voxels[np.sort(chosen)]
        index[value] = np.stack(np.unravel_index(voxels, label.shape), axis=1).astype(np.int32)
    return index, counts
