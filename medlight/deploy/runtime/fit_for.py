"""Is a scan of the kind that a bundle was trained on? What differs is refused, or noted where it is forced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from medlight.errors import MedlightError
from medlight.prepare.preparation import Preparation, modalities
from medlight.scans.orientation import reorient
from medlight.scans.volume import Volume

FAR = 2.0  # times the largest training voxel, or less than the smallest one divided by it

UNCHECKED = "modality not checked: the bundle was trained on scans that tell none (fit --data.modality=MR names it)"


def checks_modality(data: Mapping[str, Any]) -> bool:
    """Whether a bundle knows which modality it was trained on: NIfTI and pictures tell none."""
    return bool(data.get("modalities"))


def told(scans: Iterable[Volume]) -> bool:
    """Whether each scan tells its modality; NIfTI, pictures and DICOM without the tag don't."""
    return all(scan.meta.get("modality") for scan in scans)


def misfits(data: Mapping[str, Any], preparation: Preparation, scans: Mapping[str, Volume]) -> list[str]:
    """Say in one clause each what is new to a bundle in a scan: modality, voxel size, one slice, an empty scan.

    data: the bundle's data signature; what it does not tell (older bundles, scans of formats without a modality) is
    passed over.
    """
    found = []
    trained = set(data.get("modalities") or ())
    new = [name for name in modalities(scans.values()) if name not in trained]
    if trained and new:
        found.append(f"is {' and '.join(new)}, but the bundle was trained on {' and '.join(sorted(trained))}")
    blank = [name for name, scan in scans.items() if scan.array.size and scan.array.min() == scan.array.max()]
    if blank:
        found.append(f"{' and '.join(blank)} has one value everywhere, so there is nothing to see in it")
    single = all(scan.shape[2] == 1 for scan in scans.values())
    if data["spatial_dims"] == 3 and single and not preparation.clip_frames(dict(scans)):
        found.append("is a single slice, but the bundle was trained on volumes")
    spacing = data.get("spacing_range")
    if spacing and not _without_size(data):
        found += _far(spacing, preparation.orientation, next(iter(scans.values())))
    return found


def refuse(found: list[str]) -> None:
    """Raise MedlightError for what does not fit."""
    if found:
        raise MedlightError(f"{'; '.join(found)}; --force predicts it all the same, and keeps a warning")


def _far(spacing: Any, codes: str, scan: Volume) -> list[str]:
    turned, affine = reorient(np.broadcast_to(np.uint8(0), scan.shape), scan.affine, codes)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = np.asarray(spacing[0]), np.asarray(spacing[1])
    outside = ((sizes < low / FAR) | (sizes > high * FAR)) & (np.array(turned.shape) > 1)
    if not outside.any():
        return []
    spans = "x".join(f"{a:.3g}" if a == b else f"{a:.3g}-{b:.3g}" for a, b in zip(low, high, strict=True))
    has = "x".join(f"{size:.3g}" for size in sizes)
    return [f"has voxels of {has} mm ({codes}), but the bundle was trained on {spans} mm"]


def _without_size(data: Mapping[str, Any]) -> bool:
    """Whether the training images were pictures, which tell no size: 1 mm stands for it."""
    return bool(data["spatial_dims"] == 2 and np.all(np.asarray(data["spacing_range"]) == 1))
