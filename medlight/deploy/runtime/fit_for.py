"""Is a scan of the kind that a bundle was trained on? What differs is refused, or noted where it is forced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from medlight.errors import MedlightError
from medlight.prepare.preparation import Preparation, modalities
from medlight.prepare.reading import colours
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
    """Say in one clause each what is new to a bundle in a scan: modality, voxel size, one slice, an empty contrast.

    data: the bundle's data signature; what it does not tell (older bundles, scans of formats without a modality) is
    passed over. Each contrast's voxel size is held against those that it had in training.
    """
    found = []
    trained = set(data.get("modalities") or ())
    new = [name for name in modalities(scans.values()) if name not in trained]
    if trained and new:
        found.append(f"is {' and '.join(new)}, but the bundle was trained on {' and '.join(sorted(trained))}")
    clip = preparation.clip_frames(dict(scans)) > 0
    blank = [part for name, scan in scans.items() for part in _blank(name, scan, clip)]
    if blank:
        found.append(f"{' and '.join(blank)} has one value everywhere, so there is nothing to see in it")
    ranges = dict(data.get("spacing_ranges") or {})
    if not _without_size(data):
        ranges[next(iter(scans))] = data.get("spacing_range")
    for name, scan in scans.items():
        spacing = ranges.get(name)
        which = f"{name} " if len(scans) > 1 else ""
        if data["spatial_dims"] == 3 and scan.shape[2] == 1 and not clip:
            found.append(f"{which}is a single slice, but the bundle was trained on volumes")
        if spacing:
            found += [f"{which}{text}" for text in _far(spacing, preparation.orientation, scan)]
    return found


def refuse(found: list[str]) -> None:
    """Raise MedlightError for what does not fit."""
    if found:
        raise MedlightError(f"{'; '.join(found)}; --force predicts it all the same, and keeps a warning")


def _blank(name: str, scan: Volume, clip: bool) -> list[str]:
    """The channels of a contrast that have one value everywhere, or the contrast, where all have.

    The colours of a picture are one channel here (blue may well be 0), and so are all the frames of a clip.
    """
    width = len(scan.array) if clip else colours(scan)
    parts = [scan.array[start : start + width] for start in range(0, len(scan.array), width)]
    empty = [number for number, part in enumerate(parts) if part.size and part.min() == part.max()]
    return [name] if len(empty) == len(parts) else [f"{name}:{number}" for number in empty]


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
    spacing = data.get("spacing_range")
    return bool(data["spatial_dims"] == 2 and spacing and np.all(np.asarray(spacing) == 1))
