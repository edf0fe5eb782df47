"""Writing a label map as a DICOM segmentation object of its source images (PS3.3 A.51), by highdicom."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medlight.errors import MedlightError
from medlight.scans.files import replacing, shown
from medlight.scans.orientation import Affine, orientation, reorient
from medlight.scans.regions import Grid
from medlight.scans.values import values_of
from medlight.scans.volume import Volume

if TYPE_CHECKING:
    from medlight.prepare.case import Label
    from medlight.scans.dicom.frames import Frame, Stack

Array = npt.NDArray[Any]
Code = tuple[str, str, str]


def _words(text: str) -> list[str]:
    return text.split()


# What the standard asks a segmentation to have from its source; nothing else of the source is kept.
_KEPT = _words(
    "SpecificCharacterSet SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID SeriesNumber Modality "
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber "
    "ReferringPhysicianName PatientIdentityRemoved DeidentificationMethod FrameOfReferenceUID "
    "PositionReferenceIndicator Rows Columns NumberOfFrames ImagePositionPatient ImageOrientationPatient PixelSpacing "
    "SliceThickness LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
)
# Type 2 (PS3.3 C.7.1.1, C.7.2.1): they have to be there, and may be empty.
_MAYBE_EMPTY = _words(
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber "
    "ReferringPhysicianName"
)
_MOST_LABELS = 255  # more different values than these are an image's
# Of more values than a few organs', neighbouring voxels of a label map are alike nearly all over; of a picture, rarely.
_FEW_LABELS, _ALIKE = 32, 0.5
_MENDED = ("gap", "uneven", "tilt", "duplicate")  # verdicts of series whose image may lie on a grid made by a mend
_LONGEST_COMMENT = 10_240  # characters of a long text (PS3.5 6.2)
_TISSUE: Code = ("85756007", "SCT", "Tissue")
_ABNORMAL: Code = ("49755003", "SCT", "Morphologically Abnormal Structure")
_ANATOMY: Code = ("91723000", "SCT", "Anatomical Structure")


def write_seg(
    mask: Volume,
    source: Path | Stack,
    out: Path,
    labels: Sequence[Label],
    made: Literal["automatic", "manual"] = "automatic",
    note: str = "",
) -> None:
    """Write a label map as a DICOM-SEG that refers to the images it was made of; empty frames are left out.

    mask: ``(1, I, J, K)``, whole numbers from 0, which is none, to 65535, at most 255 different ones, on the grid of
    one series of ``source`` (axes in any order); of a series that has to be mended, also on another grid in the same
    patient coordinates, at right angles. source: the series' folder, file or zip, or its stack; its headers are read
    again here, for the patient and the study that the standard asks for. labels: names, colours and coded terms; a
    value that none names is called ``label 3``, and one without a code is coded as tissue. made: by an algorithm or by
    hand, for Segment Algorithm Type. note: what a reader has to know (Image Comments); nothing of the patient.

    The file is a binary segmentation, its segment numbers the label values, where these run from 1 to N; else a label
    map segmentation, which keeps any values. Warnings of the libraries are kept silent: they quote the patient's name.
    Raises MedlightError where the mask isn't a label map, lies on no series of the source, or the source lacks what a
    segmentation must refer to.
    """
    out = Path(out)
    if out.suffix.lower() != ".dcm":
        raise MedlightError(f"{shown(out)}: a DICOM-SEG is called .dcm; rename it")
    fault = label_fault(mask.array)
    if fault:
        raise MedlightError(f"{shown(out)}: {fault}")
    with _silent():
        dataset = _made(mask, source, labels, made)
        if note:
            dataset.ContentDescription = "Made with warnings: see Image Comments"
            dataset.ImageComments = note[:_LONGEST_COMMENT]
        with replacing(out) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)


def label_fault(array: Array) -> str:
    """Say in one sentence why ``(C, I, J, K)`` voxels are no label map; empty where they are one."""
    if len(array) != 1 or array.dtype.kind not in "biu":
        return f"a segmentation is written from one channel of whole numbers, not {len(array)} of {array.dtype}"
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0 or high > np.iinfo(np.uint16).max:
        return f"a segmentation is written from values of 0 to 65535; {low if low < 0 else high} is no label"
    count = int(np.count_nonzero(values_of(array)))
    line = array[0].ravel(order="K")
    is_image = count > _MOST_LABELS or (count > _FEW_LABELS and np.mean(line[1:] == line[:-1]) < _ALIKE)
    return f"{count} different values are an image's, not a label map's; give the mask" if is_image else ""


@contextmanager
def _silent() -> Iterator[None]:
    """Let highdicom and pydicom say nothing: what they warn of is quoted, and may be the patient's name."""
    loggers = [logging.getLogger(name) for name in ("highdicom", "pydicom")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _made(mask: Volume, source: Path | Stack, labels: Sequence[Label], made: Literal["automatic", "manual"]) -> Any:
    """Make the object of a label map that is one; see `write_seg`."""
    frames, affine = _source_of(mask, source)
    turned, moved = reorient(mask.array[0], mask.affine, orientation(affine))
    images = _headers(frames)
    on_grid = _same_grid(turned.shape, moved, frames, affine)
    _fill_in(images, frames, affine)
    described = _described(mask.array, labels)
    try:
        return _segmentation(turned, moved, frames if on_grid else None, images, described, made)
    except (AttributeError, KeyError, ValueError, TypeError, IndexError) as error:
        cause = str(error) if isinstance(error, AttributeError) else type(error).__name__  # values may be the patient's
        title = _title(source)
        raise MedlightError(f"{title}: no segmentation can refer to these images ({cause}); check them") from None


def _title(source: Path | Stack) -> str:
    return shown(source) if isinstance(source, Path) else source.id


def _source_of(mask: Volume, source: Path | Stack) -> tuple[tuple[Frame, ...], Affine]:
    """Return the frames of the volume that the mask was made of, in order (of the first channel), and their affine."""
    from medlight.scans.dicom.geometry import affine as affine_of
    from medlight.scans.dicom.survey import survey

    found: list[tuple[Stack, tuple[Frame, ...], Affine]] = []
    for stack in survey([source]).stacks if isinstance(source, Path) else [source]:
        alike = stack.verdict.status not in ("unreadable", "mixed-orientation", "mixed-shape", "not-a-volume")
        if stack.kind == "image" and (alike or len(stack.frames) == 1):
            frames = stack.frames[: len(stack.frames) // len(stack.channels)]
            found.append((stack, frames, affine_of(frames)))
    if not found:
        raise MedlightError(f"{_title(source)}: holds no image that a segmentation could be made of; give its series")
    turned = [reorient(mask.array[0], mask.affine, orientation(affine)) for _, _, affine in found]
    fits = [
        _same_grid(array.shape, moved, f, affine) for (array, moved), (_, f, affine) in zip(turned, found, strict=True)
    ]
    fitting = [entry for entry, fit in zip(found, fits, strict=True) if fit] or found
    if len(fitting) > 1:
        count = f"{len(fitting)} series could be what the mask was made of"
        raise MedlightError(f"{_title(source)}: {count}; give the one")
    stack, frames, affine = fitting[0]
    if not any(fits):
        array, moved = turned[0]
        _check_elsewhere(array.shape, moved, stack, frames, affine, _title(source))
    return frames, affine


def _grid_of(frames: Sequence[Frame], affine: Affine) -> Grid:
    rows, columns = frames[0].shape
    return Grid((columns, rows, len(frames)), affine)


def _corners(shape: tuple[int, ...], affine: Affine) -> npt.NDArray[np.float64]:
    """The centres of the voxels at the corners, ``(8, 3)`` in RAS+ millimetres."""
    ends = [(0, size - 1) for size in shape]
    corners = np.array([(i, j, k, 1) for i in ends[0] for j in ends[1] for k in ends[2]], float)
    return np.asarray((corners @ affine.T)[:, :3])


def _same_grid(shape: tuple[int, ...], affine: Affine, frames: Sequence[Frame], other: Affine) -> bool:
    """Whether voxels are the source's pixels: of the same number, in the same place if the source has one."""
    grid = _grid_of(frames, other)
    if shape != grid.shape or frames[0].position is None:
        return shape == grid.shape
    apart = grid.voxels(_corners(shape, affine)) - grid.voxels(_corners(shape, other))
    return bool((np.abs(apart) <= grid.slack).all())


def _check_elsewhere(
    shape: tuple[int, ...], affine: Affine, stack: Stack, frames: Sequence[Frame], other: Affine, title: str
) -> None:
    """Refuse a mask on another grid than the series', unless a mend of the series may have made that grid there."""
    grid = _grid_of(frames, other)
    mine, its = _corners(shape, affine), _corners(grid.shape, other)
    middle, edge = mine.mean(axis=0), float(np.linalg.norm(other[:3, :3], axis=0).max())
    inside = bool(((its.min(axis=0) - edge <= middle) & (middle <= its.max(axis=0) + edge)).all())
    if stack.verdict.status in _MENDED and inside:
        return
    sizes = ["x".join(map(str, size)) for size in (shape, grid.shape)]
    far = float(np.linalg.norm(mine - its, axis=1).max())
    raise MedlightError(
        f"{title}: the mask has {sizes[0]} voxels and the series {sizes[1]}, with corners up to {far:.4g} mm apart; "
        "give the series that the mask was drawn on, or bring the mask onto its grid"
    )


def _headers(frames: Sequence[Frame]) -> list[Any]:
    """Read what is kept of the headers of the frames' objects, each once, in the frames' order."""
    from pydicom.datadict import tag_for_keyword

    from medlight.scans.dicom.header import parse

    kept = {tag_for_keyword(keyword) for keyword in _KEPT}
    images = []
    for place in dict.fromkeys(frame.place for frame in frames):
        image = parse(place, pixels=True)
        for tag in image.keys() - kept:
            del image[tag]
        images.append(image)
    return images


def _fill_in(images: Sequence[Any], frames: Sequence[Frame], affine: Affine) -> None:
    """Give the headers in memory what highdicom asks of them and scanners may leave out, or get wrong.

    Spacing Between Slices is left out, so that it is computed from the positions; orientations that differ by rounding
    are made one; shared and per-frame places of an enhanced object are made shared.
    """
    from highdicom import PixelMeasuresSequence, PlaneOrientationSequence
    from pydicom.uid import generate_uid

    first, step = frames[0], float(np.linalg.norm(affine[:3, 2]))
    for image in images:
        for keyword in _MAYBE_EMPTY:
            if keyword not in image:
                setattr(image, keyword, None)
        if image.PatientSex not in ("M", "F", "O", "", None):
            image.PatientSex = None
        if first.along_row is None or first.along_column is None or first.spacing is None:
            continue
        if "FrameOfReferenceUID" not in image:
            image.FrameOfReferenceUID = generate_uid(entropy_srcs=[str(image.get("SeriesInstanceUID"))])
        axes = (*first.along_row, *first.along_column)
        if "SharedFunctionalGroupsSequence" in image:
            shared = image.SharedFunctionalGroupsSequence[0]
            shared.PlaneOrientationSequence = PlaneOrientationSequence("PATIENT", axes)
            shared.PixelMeasuresSequence = PixelMeasuresSequence(first.spacing, first.thickness or step)
        else:
            image.ImageOrientationPatient = [f"{value:.12g}"[:16] for value in axes]
            image.SliceThickness = first.thickness or step


def _segmentation(
    array: Array,
    affine: Affine,
    frames: Sequence[Frame] | None,
    images: list[Any],
    described: Mapping[int, Label],
    made: Literal["automatic", "manual"],
) -> Any:
    """Build the object. frames: those whose pixels the voxels are, in order; None where the grid is another one."""
    from highdicom import UID
    from highdicom.seg import Segmentation
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    from medlight import __version__

    numbered = list(described) == list(range(1, len(described) + 1))
    pixels, images = _pixels(array, affine, frames, images)
    dataset = Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type="BINARY" if numbered else "LABELMAP",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        segment_descriptions=[_description(value, label, made) for value, label in described.items()],
        series_instance_uid=UID(),
        series_number=1000 + int(images[0].get("SeriesNumber") or 0) % 100_000,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="medlight",
        manufacturer_model_name="medlight",
        software_versions=__version__,
        device_serial_number=__version__,
        content_label="SEGMENTATION",
        series_description="Segmentation",
        specific_character_set="ISO_IR 192",
        omit_empty_frames=True,
    )
    if not numbered:  # not by highdicom, which takes gdcm's encoder: that ends the process for an odd number of pixels
        dataset.compress(RLELossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    return dataset


def _pixels(array: Array, affine: Affine, frames: Sequence[Frame] | None, images: list[Any]) -> tuple[Any, list[Any]]:
    """Return what highdicom takes: slices in the order of the source's images, or a volume with its own place.

    A mask with nothing in it is one empty frame: an object can't have none.
    """
    from highdicom import Volume as Placed

    planes = np.ascontiguousarray(array.transpose(2, 1, 0))
    planes = planes.astype(np.uint8 if planes.max() <= np.iinfo(np.uint8).max else np.uint16)
    if frames is not None and len(images) == len(frames):
        used = slice(None) if planes.any() else slice(1)
        return planes[used], images[used]
    if frames is not None and len(frames) == int(images[0].get("NumberOfFrames") or 1):
        return planes[np.argsort([frame.index for frame in frames])], images
    by_slice = affine[:, [2, 1, 0, 3]]
    return Placed(planes, by_slice, "PATIENT", from_reference_convention="RAS"), images


def _described(array: Array, labels: Sequence[Label]) -> dict[int, Label]:
    """Return the label of each value that is in the schema or in the mask; background is none."""
    from medlight.prepare.case import Label

    named = {label.value: label for label in labels}
    values = sorted({*named, *values_of(array).tolist()} - {0}) or [1]
    return {value: named.get(value) or Label(value, f"label {value}") for value in values}


def _description(value: int, label: Label, made: Literal["automatic", "manual"]) -> Any:
    """Describe one segment with coded terms (PS3.3 C.8.20.4)."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from PIL import ImageColor
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code as Term

    from medlight import __version__

    term = Term(*(label.code or _TISSUE))
    if not (0 < len(label.name) <= 64 and term.value and 0 < len(term.scheme_designator) <= 16 and term.meaning):
        raise MedlightError(
            f"label_names: {label.name!r} can't be a segment; a name has 1 to 64 characters, and a code is "
            "[value, scheme, meaning], as [10200004, SCT, Liver]"
        )
    by_hand = made == "manual"
    algorithm = AlgorithmIdentificationSequence("medlight", codes.cid7162.ArtificialIntelligence, __version__)
    return SegmentDescription(
        segment_number=value,
        segment_label=label.name,
        segmented_property_category=Term(*_category(term)),
        segmented_property_type=term,
        algorithm_type="MANUAL" if by_hand else "AUTOMATIC",
        algorithm_identification=None if by_hand else algorithm,
        display_color=CIELabColor.from_rgb(*ImageColor.getrgb(label.colour)[:3]) if label.colour else None,
    )


def _category(term: Any) -> Code:
    """Return the category (CID 7150) of a term: what it is a kind of in the standard's own lists, else anatomy."""
    from pydicom.sr.codedict import codes

    if any(term == known for known in (*codes.cid7159.concepts.values(), *codes.cid7194.concepts.values())):
        return _ABNORMAL
    if term.value == _TISSUE[0] or any(term == known for known in codes.cid7191.concepts.values()):
        return _TISSUE
    return _ANATOMY
