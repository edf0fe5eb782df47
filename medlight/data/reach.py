"""How far beyond a patch a transform looks, so that as much is read around it and no more."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torchio as tio

from medlight.data.augment.spatial import RandomSpatial
from medlight.data.patches import Triple

Array = npt.NDArray[np.float64]


@runtime_checkable
class Reaching(Protocol):
    """A transform that says itself how far it looks beyond the patch."""

    def reach(self, size: Triple, affine: npt.NDArray[np.float64]) -> Triple:
        """Voxels on each side of a patch of ``size`` that may come into it, at most."""
        ...


def reach_of(transform: tio.Transform, size: Triple, affine: npt.NDArray[np.float64]) -> Triple:
    """Voxels on each side of a patch that a transform may bring into it, at most.

    A transform's own method ``reach`` is asked where it has one; TorchIO's affine and elastic transforms tell it by
    their ranges; of another spatial transform, TorchIO's or behind ``tio.MonaiAdapter``, that isn't known to stay
    within the patch a quarter of the patch is assumed. All others look no further than the patch.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    match transform:
        case Reaching():
            return transform.reach(size, affine)
        case tio.Compose():
            reaches = [reach_of(t, size, affine) for t in transform.transforms]
            return _triple(np.sum(reaches, axis=0) if reaches else np.zeros(3))
        case tio.OneOf():
            return _triple(np.max([reach_of(t, size, affine) for t in transform.transforms_dict], axis=0))
        case RandomSpatial():
            elastic = np.linalg.norm(transform.max_displacement) / min(transform.scales[::2]) / spacing
            return _triple(_affine_reach(transform, size, spacing) + elastic, size)
        case tio.RandomAffine():
            return _triple(_affine_reach(transform, size, spacing), size)
        case tio.RandomElasticDeformation():
            return _triple(np.asarray(transform.max_displacement) / spacing, size)
        case tio.RandomAffineElasticDeformation():
            inner = (transform.random_affine, transform.random_elastic)
            return _triple(np.sum([reach_of(t, size, affine) for t in inner], axis=0), size)
        case tio.RandomFlip() | tio.RandomAnisotropy():
            return (0, 0, 0)
        case tio.MonaiAdapter():
            return _triple(np.asarray(size) / 4, size) if _is_spatial(transform.monai_transform) else (0, 0, 0)
        case tio.SpatialTransform():
            return _triple(np.asarray(size) / 4, size)
        case _:
            return (0, 0, 0)


def moves(transform: tio.Transform) -> bool:
    """Whether a transform is known to move voxels: flips do too, which look no further than the patch.

    Those that a transform is composed of are to be asked one by one.
    """
    if not isinstance(transform, tio.MonaiAdapter):
        return isinstance(transform, tio.SpatialTransform)
    return _monai_moves(transform.monai_transform)


def _monai_moves(monai_transform: Any) -> bool:
    inner = getattr(monai_transform, "transforms", None) or ()
    place = type(monai_transform).__module__
    return place.startswith(("monai.transforms.spatial", "monai.transforms.croppad")) or any(map(_monai_moves, inner))


def _is_spatial(monai_transform: Any) -> bool:
    inner = getattr(monai_transform, "transforms", None)
    if inner is not None:
        return any(_is_spatial(t) for t in inner)
    kind = type(monai_transform)
    return kind.__module__.startswith("monai.transforms.spatial") and "Flip" not in kind.__name__


def _affine_reach(transform: tio.RandomAffine | RandomSpatial, size: Triple, spacing: Array) -> Array:
    """Bound for all rotations, scalings and translations in range, of the patch's corners in mm."""
    half = (np.asarray(size) - 1) / 2 * spacing
    smallest = min(transform.scales[::2])
    angles = np.abs(np.radians(transform.degrees)).reshape(3, 2).max(axis=1)
    if size[2] == 1:
        angles[:2] = 0
    shift = np.abs(transform.translation).reshape(3, 2).max(axis=1)
    turned = np.eye(3)
    for axis in (1, 0, 2):  # TorchIO rotates about z last, so the way back begins there
        widest = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        widest[a, b] = widest[b, a] = np.sin(min(angles[axis], np.pi / 2))
        turned = turned @ widest
    furthest = turned @ (half / max(smallest, 0.01) + shift)
    return np.asarray((furthest - half) / spacing)


def _triple(reach: npt.NDArray[np.floating[Any]], size: Triple | None = None) -> Triple:
    """Whole voxels, at least 0; none along the axis that a 2D image doesn't have."""
    i, j, k = (int(max(np.ceil(r), 0)) for r in reach)
    return (i, j, 0) if size is not None and size[2] == 1 else (i, j, k)
