"""DICOM volumes to NIfTI, and segmentations and structures to label maps on their images' grids; resumable."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medlight.errors import MedlightError
from medlight.scans.conversion_record import LABELS, Entry, known, note, tidy
from medlight.scans.dicom.frames import Place, Stack
from medlight.scans.nifti import write_nifti
from medlight.scans.volume import Channel, Volume
from medlight.scans.workers import surviving

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medlight.scans.dicom.mend import Mends
    from medlight.scans.regions import Drawing, Grid

_VERSION = 1  # of what is written
_Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Converted:
    """What became of one volume, or of one segmentation on one image.

    files: relative to the output folder; none where nothing could be written, and ``reason`` says why (it may name a
    file). notes: what was mended. reused: it was there from an equal conversion. names: of a label map's values, as the
    source has them (free text: for the terminal only). regions: of a segmentation, for each what it is in the files:
    ``file``, ``value``, its ``number`` in the source, and its coded term as ``[value, scheme, meaning]`` or None.
    name, key: of the entry in the record.
    """

    stack: Stack
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str = ""
    reused: bool = False
    names: tuple[tuple[int, str], ...] = ()
    regions: tuple[Entry, ...] = ()
    name: str = ""
    key: str = ""

    @property
    def entry(self) -> Entry:
        """What the record says of it."""
        regions = {"regions": list(self.regions)} if self.regions else {}
        return {"name": self.name, "key": self.key, "files": list(self.files), "notes": list(self.notes), **regions}


def convert(
    stacks: Sequence[Stack], out: Path, mends: Mends, workers: int = 0, progress: _Progress | None = None
) -> list[Converted]:
    """Write every image as ``ID.nii.gz``, and every segmentation or RTSTRUCT as ``labels/ID.nii.gz`` of its image's ID.

    stacks: of a survey. A segmentation goes with the images of the series that it refers to. Where an image has
    several, their own ids are added to the names; where regions of one overlap, each gets a file with its number. A
    second copy of the same objects is called ``ID-2``.
    workers: processes. progress: called with what is done and the total.

    Files appear whole or not at all, and ``converted.jsonl`` says from what content and with what mends each was made:
    the same again is not made again. What fails, whatever it does, stops nothing else; see ``reason``.
    """
    from medlight.scans.dicom.mend import mended_frames

    images = [piece for stack in stacks if stack.kind == "image" for piece in _pieces(mended_frames, stack, mends)]
    labels = [stack for stack in stacks if stack.kind in ("seg", "rtstruct")]
    total, done = len(images) + len(labels), 0
    tidy(out)
    before = known(out)
    results: list[Converted] = []

    def take(batch: Sequence[Converted]) -> None:
        nonlocal done
        done += 1
        results.extend(batch)
        note(out, [one.entry for one in batch if one.files and not one.reused])
        if progress:
            progress(done, total)

    jobs = [(piece, name, before.get(name)) for piece, name in zip(images, _names(images), strict=True)]
    for one in surviving(partial(_image, out, mends), jobs, workers, lambda job: _died(job[0])):
        take([one])
    pairs = _pairs(labels, results)
    for batch in surviving(partial(_label, out, before), pairs, workers, lambda pair: [_died(pair[0])]):
        take(batch)
    return results


def _died(stack: Stack) -> Converted:
    return Converted(stack, reason=f"{_title(stack)}: a process died of it (out of memory, or broken pixels)")


def _pieces(mended_frames: Any, stack: Stack, mends: Mends) -> list[Stack]:
    """The volumes of a stack; one that makes no sense is kept as it is: loading it will say why."""
    try:
        return list(mended_frames(stack, mends))
    except MedlightError:
        return [stack]


def _names(stacks: Sequence[Stack]) -> list[str]:
    """The ids, made different where the same objects are there twice."""
    seen: Counter[str] = Counter()
    names = []
    for stack in stacks:
        seen[stack.id] += 1
        names.append(stack.id if seen[stack.id] == 1 else f"{stack.id}-{seen[stack.id]}")
    return names


def _image(out: Path, mends: Mends, job: tuple[Stack, str, Entry | None]) -> Converted:
    """Convert one volume, unless that was done."""
    from medlight.scans.dicom.load import load

    stack, name, entry = job
    try:
        key = _key(stack, mends.to_dict())
        file = f"{name}.nii.gz"
        if entry and entry["key"] == key and (out / file).is_file():
            return Converted(stack, (file,), tuple(entry["notes"]), reused=True, name=name, key=key)
        volume = load(stack, mends)
        write_nifti(volume, out / file)
    except (MedlightError, OSError) as error:
        return Converted(stack, reason=" ".join(str(error).split()))
    return Converted(stack, (file,), tuple(volume.meta.get("mended", ())), name=name, key=key)


_Pair = tuple[Stack, list[tuple[Converted, str]]]


def _pairs(labels: Sequence[Stack], images: Sequence[Converted]) -> list[_Pair]:
    """Each segmentation with those of its images that were written, and what it is to be called there."""
    by_series: dict[str, list[Converted]] = {}
    for image in images:
        if image.files:
            by_series.setdefault(image.stack.series_uid, []).append(image)
    found = [[image for uid in sorted(_series_of(stack)) for image in by_series.get(uid, [])] for stack in labels]
    counts = Counter(image.name for referred in found for image in referred)
    return [
        (stack, [(image, f"{image.name}_{name}" if counts[image.name] > 1 else image.name) for image in referred])
        for stack, name, referred in zip(labels, _names(labels), found, strict=True)
    ]


def _series_of(stack: Stack) -> set[str]:
    """The series that a segmentation refers to (PS3.3 C.12.2, C.8.8.5)."""
    import pydicom

    from medlight.scans.dicom.tree import open_place

    tags = ["ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"]
    try:
        with open_place(stack.frames[0].place) as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags, force=True)
        return set(_series_in(dataset))
    except Exception:  # pydicom: whatever the bytes make it raise; reading the regions will say what is wrong
        return set()


def _series_in(dataset: Dataset) -> Iterator[str]:
    for element in dataset:
        if element.keyword == "SeriesInstanceUID":
            yield str(element.value)
        elif element.VR == "SQ":
            for item in element.value:
                yield from _series_in(item)


def _label(out: Path, before: dict[str, Entry], pair: _Pair) -> list[Converted]:
    """Write one segmentation on the grid of each of its images; a grid that it does not lie on is passed over."""
    stack, images = pair
    if not images:
        return [Converted(stack, reason=f"{_title(stack)}: the image it was drawn on is not among what was written")]
    try:
        key = _key(stack, [image.key for image, _ in images])
    except (MedlightError, OSError) as error:
        return [Converted(stack, reason=" ".join(str(error).split()))]
    done = []
    for image, name in images:
        entry = before.get(f"{LABELS}/{name}")
        try:
            if entry and entry["key"] == key and all((out / file).is_file() for file in entry["files"]):
                done.append(_again(stack, entry, f"{LABELS}/{name}"))
                continue
            done.append(_draw(out, stack, image, name, key))
        except (MedlightError, OSError) as error:
            done.append(Converted(stack, reason=" ".join(str(error).split())))
    return [one for one in done if one.files] or done[:1]


def _again(stack: Stack, entry: Entry, name: str) -> Converted:
    """What the record says of a label map, and the names of its values, which only the source has."""
    files, regions = tuple(entry["files"]), tuple(entry["regions"])
    return Converted(
        stack, files, reused=True, names=_region_names(stack), regions=regions, name=name, key=entry["key"]
    )


def _region_names(stack: Stack) -> tuple[tuple[int, str], ...]:
    from medlight.scans.labels import drawing_of

    with _file(stack.frames[0].place) as file:
        drawing = drawing_of(file)
    return tuple((region.number, region.name) for region in drawing.regions) if drawing else ()


def _draw(out: Path, stack: Stack, image: Converted, name: str, key: str) -> Converted:
    """Write a label map of all regions, or where they overlap a mask of each."""
    from medlight.scans.labels import drawing_of, match, paint
    from medlight.scans.regions import Grid

    header: Any = nib.load(out / image.files[0])
    grid = Grid(header.shape[:3], header.affine)
    files: list[str] = []

    def write(array: Any, ending: str) -> None:
        file = f"{LABELS}/{name}{ending}.nii.gz"
        write_nifti(Volume(array[None], grid.affine, (Channel(),)), out / file)
        files.append(file)

    with _file(stack.frames[0].place) as file:
        drawing = drawing_of(file)
        if drawing is None:
            raise MedlightError(f"{_title(stack)}: is neither a segmentation nor an RTSTRUCT")
        numbers = sorted(match(drawing, ()))
        merged = _merged(drawing, grid, numbers)
        if merged is not None:
            write(merged, "")
        else:
            for number in numbers:
                write(paint(drawing, grid, {number: 1}, {}), f"_{number}")
    names = tuple((region.number, region.name) for region in drawing.regions)
    regions = _told(drawing, numbers, files)
    return Converted(stack, tuple(files), names=names, regions=regions, name=f"{LABELS}/{name}", key=key)


def _told(drawing: Drawing, numbers: Sequence[int], files: Sequence[str]) -> tuple[Entry, ...]:
    """Say what each region became: a value of the one file, or a file of its own with the value 1.

    A term of a private scheme (its name begins with 99, PS3.16 8.2) is left out: its meaning may be any text.
    """
    codes = {region.number: region.code for region in drawing.regions}
    told = []
    for place, number in enumerate(numbers):
        code = codes.get(number)
        term = list(code) if code and code[0] and not code[1].startswith("99") else None
        where = {"file": files[place], "value": 1} if len(files) > 1 else {"file": files[0], "value": number}
        told.append({**where, "number": number, "code": term})
    return tuple(told)


def _merged(drawing: Drawing, grid: Grid, numbers: Sequence[int]) -> npt.NDArray[Any] | None:
    """One label map of all regions; None where two of them overlap."""
    from medlight.scans.labels import paint

    merged = np.zeros(grid.shape, np.uint8 if max(numbers, default=0) < 256 else np.uint16)
    for number in numbers:
        mask = paint(drawing, grid, {number: 1}, {}) != 0
        if merged[mask].any():
            return None
        merged[mask] = number
    if not merged.any():
        raise MedlightError(f"{drawing.file}: none of its regions lies on the image that it refers to")
    return merged


@contextmanager
def _file(place: Place) -> Iterator[Path]:
    """An object as a file of its own: a member of a zip is copied out for as long as it is needed."""
    if not place.member:
        yield place.path
        return
    from medlight.scans.dicom.tree import open_place

    with tempfile.NamedTemporaryFile(suffix=".dcm") as copy, open_place(place) as member:
        shutil.copyfileobj(member, copy)
        copy.flush()
        yield Path(copy.name)


def _title(stack: Stack) -> str:
    return stack.frames[0].place.title


def _key(stack: Stack, made_with: object) -> str:
    """A digest of all that decides what is written: the bytes of the objects, and what was done with them."""
    places = dict.fromkeys(frame.place for frame in stack.frames)
    content = sorted(_digest(place.path, place.path.stat().st_mtime_ns) + place.member for place in places)
    return hashlib.sha256(json.dumps([_VERSION, stack.id, content, made_with]).encode()).hexdigest()


@lru_cache(maxsize=4)  # a zip is digested once for all of its members
def _digest(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
