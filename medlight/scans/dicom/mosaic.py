"""Siemens mosaics: the slices of a volume as tiles of one picture (https://nipy.org/nibabel/dicom/dicom_mosaic.html)."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from pydicom import Dataset

from medlight.scans.dicom.elements import CSA_IMAGE, TAG, creator_tag, perhaps, text, value
from medlight.scans.dicom.frames import ChannelKey, Frame
from medlight.scans.dicom.moments import direction

_MOST_BYTES = 1 << 20
_MOST_TILES = 4096


def is_mosaic(dataset: Dataset) -> bool:
    """Whether a picture says that it is made of tiles."""
    return "MOSAIC" in text(dataset, TAG.ImageType).upper().split("\\")


def tiles(dataset: Dataset, whole: Frame) -> list[Frame]:
    """One frame a tile, in the order of the slices. whole: the picture as if it were one slice.

    The position that stands in the header is that of a picture as big as the mosaic with one slice's centre; the way
    the slices go and their number stand in Siemens' own CSA header. Raises ValueError where something is missing.
    """
    csa = _csa(dataset)
    count = _number(csa, "NumberOfImagesInMosaic")
    if not count or not 1 <= count <= _MOST_TILES or count % 1:
        raise ValueError("a mosaic whose Siemens CSA header (0029,1010) doesn't say how many slices it holds")
    side = math.ceil(math.sqrt(count))
    rows, columns = (pixels // side for pixels in whole.shape)
    if not rows or not columns or whole.shape != (rows * side, columns * side):
        raise ValueError(f"a mosaic of {int(count)} slices can't fill a picture of {whole.shape[0]}x{whole.shape[1]}")
    step = perhaps(dataset, TAG.SpacingBetweenSlices)
    if not step or step < 0:
        raise ValueError("a mosaic that doesn't say the distance between its slices (SpacingBetweenSlices (0018,0088))")
    if whole.position is None or whole.along_row is None or whole.along_column is None or whole.spacing is None:
        raise ValueError("a mosaic that doesn't say where it lies")
    along_row, along_column = np.array(whole.along_row), np.array(whole.along_column)
    start = np.array(whole.position)
    start = start + along_row * whole.spacing[1] * (whole.shape[1] - columns) / 2
    start = start + along_column * whole.spacing[0] * (whole.shape[0] - rows) / 2
    stride = step * _normal(csa, np.cross(along_row, along_column))
    key = _channel(csa, whole.channel)
    found = []
    for index in range(int(count)):
        x, y, z = (start + index * stride).tolist()
        corner = (index // side * rows, index % side * columns)
        found.append(replace(whole, shape=(rows, columns), tile=corner, position=(x, y, z), channel=key, interval=step))
    return found


def _csa(dataset: Dataset) -> dict[str, Any]:
    """The values of Siemens' image header, by name. Raises ValueError where it is absent or broken."""
    _, data = value(dataset, CSA_IMAGE)
    if not data or not text(dataset, creator_tag(CSA_IMAGE)).startswith("SIEMENS CSA HEADER"):
        raise ValueError("a mosaic without its Siemens CSA header (0029,1010), which says where its slices lie")
    try:
        if len(data) > _MOST_BYTES:
            raise ValueError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # at its import it says that it is young
            from nibabel.nicom import csareader
        return {name: tag["items"] for name, tag in csareader.read(bytes(data))["tags"].items()}
    except Exception:  # whatever the bytes make nibabel raise
        raise ValueError("a mosaic whose Siemens CSA header (0029,1010) is broken") from None


def _numbers(csa: dict[str, Any], name: str) -> list[float]:
    try:
        found = [float(item) for item in csa.get(name, []) if str(item).strip()]
    except ValueError:
        return []
    return found if all(map(math.isfinite, found)) else []


def _number(csa: dict[str, Any], name: str) -> float | None:
    found = _numbers(csa, name)
    return found[0] if found else None


def _normal(csa: dict[str, Any], across: Any) -> Any:
    """The way the slices go: along the normal or against it."""
    said = np.array(_numbers(csa, "SliceNormalVector"))
    if said.shape != (3,) or abs(abs(said @ across) - 1) > 1e-3:
        raise ValueError("a mosaic whose Siemens CSA header (0029,1010) doesn't say which way its slices go")
    return across * np.sign(said @ across)


def _channel(csa: dict[str, Any], key: ChannelKey) -> ChannelKey:
    """The key with the diffusion weighting of the CSA header where the data set itself says none."""
    if key.b_value is not None:
        return key
    b_value = _number(csa, "B_value")
    turned = direction(tuple(_numbers(csa, "DiffusionGradientDirection"))) if b_value else None
    return replace(key, b_value=b_value, gradient=turned)
