"""Checks of a case once it is read: each fault is a CaseError that names the file and the mend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.errors import CaseError
from medlight.prepare.case import ArrayItem, Case, FileRef, FrameItem, Label
from medlight.prepare.interpolate import Shape
from medlight.scans import Volume, orientation
from medlight.scans.files import shown
from medlight.scans.orientation import Affine
from medlight.scans.values import values_of

_SAME_GRID = 0.05  # of the smallest voxel: more than rounding in a header, less than anything that matters
_LARGEST = int(np.iinfo(np.uint16).max)


def named(ref: FileRef) -> str:
    """Name what a case refers to, as short as it is clear."""
    if isinstance(ref, FrameItem):
        return f"{shown(ref.path)}[{ref.frame}]"
    return f"{shown(ref.path)}[{ref.key}][{ref.index}]" if isinstance(ref, ArrayItem) else shown(ref)


def check_images(case: Case, volumes: dict[str, Volume]) -> None:
    """Refuse voxels that are not numbers (they would spread), and images that show another place than the first."""
    first = next(iter(volumes.values()))
    for name, volume in volumes.items():
        file = named(case.images[name])
        broken = volume.array.size - int(np.isfinite(volume.array).sum()) if volume.array.dtype.kind == "f" else 0
        if broken:
            raise CaseError(case.id, f"{file}: {broken} voxels are NaN or infinite; replace them, by 0 say")
        if not _overlap(first, volume):
            other = named(next(iter(case.images.values())))
            raise CaseError(case.id, f"{file}: shows no place that {other} shows; correct its affine or remove it")


def checked_label(
    case: Case, label: Volume, image: Volume, labels: Sequence[Label] = (), frames: int = 0
) -> npt.NDArray[Any]:
    """Return the label map as uint8 or uint16 once it is known to fit the image and the schema.

    frames: how many the label map has, in which case it is ``(frames, I, J, K)``; 0 for one, ``(I, J, K)``.
    """
    assert case.label is not None
    file, other = named(case.label), named(next(iter(case.images.values())))
    if len(label.array) != (frames or 1):
        wanted = f"the clip has {frames} frames; give each its own" if frames else "a label map has one; merge them"
        raise CaseError(case.id, f"{file}: has {len(label.array)} channels, {wanted}")
    if label.shape != image.shape:
        mine, its = _by(label.shape), _by(image.shape)
        raise CaseError(case.id, f"{file}: {mine} voxels, but {other} has {its}; resample the label to the image")
    apart = grids_apart(image.affine, label.affine, image.shape)
    if apart > _SAME_GRID * min(image.spacing):
        codes = f"{orientation(label.affine)} against {orientation(image.affine)}"
        raise CaseError(
            case.id,
            f"{file}: its affine puts it up to {apart:.3g} mm away from {other} ({codes}); "
            "copy the image's affine if the voxels match, else resample the label to the image",
        )
    return _whole_numbers(case, file, label.array if frames else label.array[0], labels)


def _whole_numbers(case: Case, file: str, array: npt.NDArray[Any], labels: Sequence[Label]) -> npt.NDArray[Any]:
    values = values_of(array)
    odd = values[~np.isfinite(values) | (values != np.rint(values))]
    if odd.size:
        raise CaseError(
            case.id, f"{file}: has the value {odd[0]:g}, a label map holds whole numbers; round or replace it"
        )
    far = values[(values < 0) | (values > _LARGEST)]
    if far.size:
        raise CaseError(case.id, f"{file}: has the label value {far[0]:g}, outside 0 to {_LARGEST}; renumber it")
    check_values(case.id, file, [int(value) for value in values], labels)
    return array.astype(np.uint8 if values[-1] <= np.iinfo(np.uint8).max else np.uint16)


def check_values(case_id: str, file: str, values: Sequence[int], labels: Sequence[Label]) -> None:
    """Refuse values in a label map that the schema (if there is one) doesn't name."""
    known = {label.value for label in labels} | {0}
    unknown = [str(value) for value in values if value not in known]
    if labels and unknown:
        listed = ", ".join(map(str, sorted(known)))
        raise CaseError(
            case_id,
            f"{file}: has the unknown label value {', '.join(unknown[:3])} (label_names lists {listed}); "
            "correct the file or name the value in label_names",
        )


def grids_apart(one: Affine, other: Affine, shape: Shape) -> float:
    """The furthest that any corner voxel of a grid lies from its place in another, in millimetres."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    return float(np.linalg.norm(corners @ (one - other)[:3].T, axis=1).max())


def _overlap(one: Volume, other: Volume) -> bool:
    """Whether the boxes round two volumes meet, along the axes of the first."""
    i, j, k = other.shape
    corners = np.array([[a, b, c, 1] for a in (-0.5, i - 0.5) for b in (-0.5, j - 0.5) for c in (-0.5, k - 0.5)])
    at = corners @ (np.linalg.inv(one.affine) @ other.affine)[:3].T
    return bool((at.max(axis=0) > -0.5).all() and (at.min(axis=0) < np.array(one.shape) - 0.5).all())


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape))
