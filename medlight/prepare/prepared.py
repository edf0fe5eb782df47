"""Prepared cases on disk: one safetensors file each, read a slab at a time."""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from medlight.errors import MedlightError
from medlight.prepare.case import Case
from medlight.prepare.interpolate import Shape
from medlight.prepare.preparation import Preparation, PreparedArrays
from medlight.scans.files import replacing
from medlight.scans.orientation import Affine

Slices = tuple[slice, slice, slice]
_DTYPES = {"F32": np.float32, "U8": np.uint8, "U16": np.uint16, "I32": np.int32}
_Place = tuple[str, tuple[int, ...], int]  # type of number, shape, bytes from the start of the file


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case in the store: its facts in memory, its voxels on disk.

    Pickles as a few kilobytes; the file is mapped where it is read, so workers, ranks and trials share its pages.

    key: name in the store. digest: sha256 of the input's content, whatever the preparation.
    shape, affine, spacing: of the prepared grid, I, J, K and millimetres. stats: one entry a channel
    (`statistics.statistics`). values: label values of the case as delivered; counts: voxels of each value other than 0
    as prepared. mended: what was mended in the images, a line each. modalities: those that the images' files tell.
    spacings: voxel sizes of the images after the first, as in `PreparedArrays`.
    """

    case: Case
    path: Path
    key: str
    digest: str
    channels: tuple[str, ...]
    shape: Shape
    affine: Affine
    original_shape: Shape
    original_affine: Affine
    stats: list[dict[str, Any]]
    values: tuple[int, ...]
    counts: dict[int, int]
    places: dict[str, _Place]
    mended: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    spacings: dict[str, list[float]] = field(default_factory=dict)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size of the prepared grid in millimetres."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k

    @property
    def has_label(self) -> bool:
        """Whether there is a label map."""
        return "label" in self.places

    def image(self) -> npt.NDArray[np.float32]:
        """The whole image, ``(C, I, J, K)`` in the scanner's own values."""
        return np.array(self._map("image"))

    def image_slab(self, slices: Slices) -> npt.NDArray[np.float32]:
        """A box of the image, ``(C, i, j, k)``; only its pages are read."""
        return np.array(self._map("image")[(slice(None), *slices)])

    def label(self) -> npt.NDArray[Any]:
        """The whole label map ``(I, J, K)``; MedlightError where the case has none."""
        return np.array(self._map("label"))

    def label_slab(self, slices: Slices) -> npt.NDArray[Any]:
        """A box of the label map, ``(i, j, k)``."""
        return np.array(self._map("label")[slices])

    def foreground(self, value: int) -> npt.NDArray[np.int32]:
        """Voxel indices ``(N, 3)`` of a label value, at most 10 000, drawn with a fixed seed; none gives ``(0, 3)``."""
        name = f"foreground.{value}"
        return np.array(self._map(name)) if name in self.places else np.zeros((0, 3), np.int32)

    def _map(self, name: str) -> npt.NDArray[Any]:
        if name not in self.places:
            raise MedlightError(f"{self.case.id}: has no {name}")
        kind, shape, start = self.places[name]
        flat = np.frombuffer(_mapped(self.path), _DTYPES[kind], math.prod(shape), start)
        return flat.reshape(shape)


def cases_with(cases: Iterable[PreparedCase]) -> dict[int, int]:
    """In how many cases each label value has voxels, as prepared; under 0, how many label maps are all background."""
    present = [[value for value, count in case.counts.items() if count] or [0] for case in cases if case.has_label]
    return dict(sorted(Counter(value for values in present for value in values).items()))


def scanned(cases: Sequence[PreparedCase], preparation: Preparation) -> dict[str, Any]:
    """What scans were like before they were prepared, as plain values: a predictor knows by it what is new to it.

    Keys: modalities, those that are known; spacing_range, the smallest and the largest voxel size in millimetres along
    the axes of the preparation's orientation; where a case has several images spacing_ranges, the same of each image
    after the first, by its name.
    """
    first = [preparation.spacing_along(case.original_affine) for case in cases]
    modalities = sorted({name for case in cases for name in case.modalities})
    others = {
        name: _ends([case.spacings[name] for case in cases if name in case.spacings]) for name in cases[0].spacings
    }
    return {
        "modalities": modalities,
        "spacing_range": _ends(first),
        **({"spacing_ranges": others} if others else {}),
    }


def _ends(sizes: Sequence[Sequence[float]]) -> list[list[float]]:
    """The smallest and the largest along each axis."""
    found = np.array(sizes)
    return [[round(float(size), 4) for size in end] for end in (found.min(axis=0), found.max(axis=0))]


@lru_cache(maxsize=256)
def _mapped(path: Path) -> mmap.mmap:
    """A file of the store in memory; kept for a while, as mapping takes longer than reading a patch."""
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def write_prepared(arrays: PreparedArrays, path: Path) -> None:
    """Write a prepared case in one step. Nothing in the file tells who or where: no id, no path."""
    tensors: dict[str, npt.NDArray[Any]] = {"image": arrays.image}
    if arrays.label is not None:
        tensors["label"] = arrays.label
    tensors.update({f"foreground.{value}": index for value, index in arrays.foreground.items()})
    facts = {
        "channels": arrays.channels,
        "affine": arrays.affine.tolist(),
        "original_affine": arrays.original_affine.tolist(),
        "original_shape": arrays.original_shape,
        "stats": arrays.stats,
        "values": arrays.values,
        "counts": sorted(arrays.counts.items()),
        **({"mended": arrays.mended} if arrays.mended else {}),
        **({"modalities": arrays.modalities} if arrays.modalities else {}),
        **({"spacings": arrays.spacings} if arrays.spacings else {}),
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"medlight": json.dumps(facts)})


def open_prepared(case: Case, path: Path, digest: str) -> PreparedCase:
    """Read the facts of a prepared case; MedlightError where the file is not whole."""
    try:
        places, facts = _header(path)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise MedlightError(f"{path}: not a whole prepared case ({error}); remove it and prepare again") from None
    return PreparedCase(
        case=case,
        path=path,
        key=path.stem,
        digest=digest,
        channels=tuple(facts["channels"]),
        shape=places["image"][1][1:],  # type: ignore[arg-type]
        affine=np.array(facts["affine"]),
        original_shape=tuple(facts["original_shape"]),
        original_affine=np.array(facts["original_affine"]),
        stats=facts["stats"],
        values=tuple(facts["values"]),
        counts=dict(facts["counts"]),
        places=places,
        mended=tuple(facts.get("mended", ())),
        modalities=tuple(facts.get("modalities", ())),
        spacings=dict(facts.get("spacings", {})),
    )


def _header(path: Path) -> tuple[dict[str, _Place], dict[str, Any]]:
    """Where each tensor lies (https://huggingface.co/docs/safetensors, "Format"), and our facts."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > size:
            raise ValueError("cut short")
        header = json.loads(stream.read(length))
    facts = json.loads(header.pop("__metadata__")["medlight"])
    places = {
        name: (entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }
    if size != 8 + length + max(entry["data_offsets"][1] for entry in header.values()):
        raise ValueError("cut short")
    return places, facts
