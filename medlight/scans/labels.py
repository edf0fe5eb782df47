"""Label maps from whatever they are kept in: NIfTI and its like, DICOM-SEG, RTSTRUCT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medlight.errors import MedlightError
from medlight.scans.files import shown
from medlight.scans.read import check_file, format_of, read
from medlight.scans.regions import Array, Code, Drawing, Grid, Piece, Region, digest_of
from medlight.scans.volume import Channel, Volume

if TYPE_CHECKING:
    from medlight.prepare.case import Label

_LARGEST = int(np.iinfo(np.uint16).max)
_RESAMPLED = ("interpolated", "resampled", "deskewed")  # words of a mend's note
_HALF = 0.5  # a voxel is of a fractional segment from here on


def read_label(path: Path, image: Volume, labels: Sequence[Label] = ()) -> Volume:
    """Read a label map ``(1, I, J, K)``; a DICOM-SEG or RTSTRUCT comes on the image's grid, any other as it is stored.

    path: a file, or a folder that holds one DICOM-SEG or RTSTRUCT. image: its affine and shape, not its voxels.
    labels: which segment becomes which value. Each is looked for by its coded term and its name (case, blanks, ``-``
    and ``_`` don't count). Where no segment of a DICOM-SEG matches any label so, its segment numbers are the values.
    A segment that then is no label is refused; structures of an RTSTRUCT that are no label are left out, as every
    plan has an outline of the body or the couch. With no labels, numbers are values and all is taken.

    A voxel of a fractional segment counts from one half. Where segments of different values overlap, the label with the
    higher ``order`` has the voxel; labels without one may not overlap.

    Raises MedlightError (naming the file and the mend) where the file can't be read or placed, segments overlap, or
    nothing matches.
    """
    path = Path(path)
    drawing = drawing_of(path)
    if drawing is None:
        return read(path, indices=True)
    _check_origin(drawing, image)
    _check_mended(drawing, image)
    values = match(drawing, labels)
    ranks = {label.value: label.order for label in labels}
    array = paint(drawing, Grid(image.shape, image.affine), values, ranks, cut=bool(image.meta.get("mended")))
    return Volume(array[None], image.affine.copy(), (Channel(),))


def _check_origin(drawing: Drawing, image: Volume) -> None:
    """Refuse a drawing of another series in another frame of reference; one of the two may be made up by a program."""
    known = image.meta.get("origin", {})
    same_series = known.get("series") in {digest_of(uid) for uid in drawing.series}
    same_frame = known.get("frame_of_reference") == digest_of(drawing.frame_of_reference)
    told = known.get("series") and known.get("frame_of_reference") and drawing.series and drawing.frame_of_reference
    if told and not (same_series or same_frame):
        raise MedlightError(
            f"{drawing.file}: refers to another series in another frame of reference than the image's; "
            "give the one made of this image, or register it first"
        )


def _check_mended(drawing: Drawing, image: Volume) -> None:
    """Refuse slices that were made up: nothing was drawn on them, so that a label would have holes there."""
    notes = [note for note in image.meta.get("mended", ()) if any(word in note for word in _RESAMPLED)]
    if notes:
        raise MedlightError(
            f"{drawing.file}: was drawn on slices as they were scanned, and the image's are resampled ({notes[0]}); "
            "convert the image and bring the label onto it, or leave the case out"
        )


def match(drawing: Drawing, labels: Sequence[Label]) -> dict[int, int]:
    """Say which label value each region's number stands for; see `read_label`."""
    numbers = [region.number for region in drawing.regions]
    if not labels:
        far = [number for number in numbers if not 0 < number <= _LARGEST]
        if far:
            raise MedlightError(f"{drawing.file}: {drawing.kind} {far[0]} is no label value; name it in label_names")
        return {number: number for number in numbers}
    named = {region.number: _label_of(region, labels, drawing) for region in drawing.regions}
    found = {number: label.value for number, label in named.items() if label is not None}
    if not found and drawing.kind == "segment":
        found = {label.value: label.value for label in labels if label.value in numbers and label.value != 0}
    left = [number for number in numbers if number not in found]
    if not found or (left and drawing.kind == "segment"):
        raise MedlightError(
            f"{drawing.file}: {drawing.kind}s {_listed(left)} have neither a name nor a code of label_names; "
            "give the label the name or code that the file has"
        )
    return {number: value for number, value in found.items() if value != 0}


def _label_of(region: Region, labels: Sequence[Label], drawing: Drawing) -> Label | None:
    """Return the label with the region's coded term, else the one with its name."""
    by_code = [label for label in labels if label.code and region.code and _same_term(label.code, region.code)]
    by_name = [label for label in labels if _plain(label.name) == _plain(region.name)]
    candidates = [label for label in by_code if label in by_name] or [*by_code, *by_name]
    values = {label.value for label in candidates}
    if len(values) > 1:
        raise MedlightError(
            f"{drawing.file}: {drawing.kind} {region.number} fits the labels {_listed(sorted(values))}; "
            "give them names and codes that tell them apart"
        )
    return candidates[0] if candidates else None


def paint(
    drawing: Drawing, grid: Grid, values: Mapping[int, int], ranks: Mapping[int, int | None], cut: bool = False
) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Bring regions onto one label map ``(I, J, K)``. values: of each number; ranks: who wins where values overlap."""
    highest = max(values.values(), default=0)
    kind = np.uint8 if highest <= np.iinfo(np.uint8).max else np.uint16
    array = np.zeros(grid.shape, kind, order="F")  # slices are painted, so they lie together in memory
    for piece in drawing.pieces(grid, values.keys(), cut):
        value, there = values[piece.number], array[piece.at]
        mask = piece.values if piece.values.dtype == bool else piece.values >= _HALF
        for other in np.unique(there[mask & (there != 0) & (there != value)]).tolist():
            mask = _shared_out(drawing, piece, mask, there, (value, other), ranks)
        there[mask] = value
    return array


def _shared_out(
    drawing: Drawing, piece: Piece, mask: Array, there: Array, values: tuple[int, int], ranks: Mapping[int, int | None]
) -> Array:
    """Return what is left of a mask where another value lies already; MedlightError where neither is to win."""
    value, other = values
    mine, its = ranks.get(value), ranks.get(other)
    if mine is None or its is None or mine == its:
        first = np.argwhere(mask & (there == other))[0] + [part.start for part in piece.at]
        raise MedlightError(
            f"{drawing.file}: the labels {value} and {other} overlap (at voxel {_listed(first.tolist())}, say); "
            "give both an order in label_names, the higher one wins, or name one of them only"
        )
    return mask if mine > its else mask & (there != other)


def drawing_of(path: Path) -> Drawing | None:
    """Open a DICOM-SEG or RTSTRUCT, or the one such object in a folder or zip; None where there is none."""
    if format_of(path) != "dicom":
        return None
    check_file(path)
    from medlight.scans.dicom.decode import naming
    from medlight.scans.dicom.header import header_of, parse
    from medlight.scans.dicom.tree import objects
    from medlight.scans.rtstruct import parse_structures
    from medlight.scans.seg_frames import parse_segments

    found = []
    for place in objects([path]).places:
        with naming(place):
            kind = header_of(parse(place)).kind
        if kind in ("seg", "rtstruct"):
            found.append((place, kind))
    if len(found) > 1:
        raise MedlightError(
            f"{shown(path)}: holds {len(found)} segmentations or structure sets; give the one that is meant"
        )
    if not found:
        return None
    place, kind = found[0]
    with naming(place):
        dataset = parse(place, pixels=True)
        return parse_structures(dataset, place) if kind == "rtstruct" else parse_segments(dataset, place)


def _same_term(one: Code, other: Code) -> bool:
    """Whether two coded terms mean the same; SNOMED's old codes (SRT) equal the new ones (SCT)."""
    from pydicom.sr.coding import Code as Term

    return bool(one[0] and other[0]) and Term(*one) == Term(*other)


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
