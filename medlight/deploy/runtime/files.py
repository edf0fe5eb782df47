"""Predicting files: label maps in the input's own geometry, pictures, figures, Dice where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medlight.deploy.runtime.checked import Outcome, predict_checked
from medlight.deploy.runtime.dice import dice
from medlight.deploy.runtime.journal import Item, Journal, Result, key_of
from medlight.deploy.runtime.predictor import Predictor, Progress
from medlight.deploy.runtime.report import write_report
from medlight.errors import MedlightError
from medlight.prepare.checks import grids_apart
from medlight.prepare.reading import colours
from medlight.scans import Volume, reorient, write_nifti
from medlight.scans.files import nameless, replacing, shown
from medlight.scans.labels import read_label
from medlight.scans.nifti import description
from medlight.scans.picture import Overlay, Pixels, panel
from medlight.scans.read import format_of
from medlight.scans.seg_writing import write_seg
from medlight.scans.values import values_of

_MOST_TOLD = 5  # classes in a picture


def predict_item(
    predictor: Predictor,
    item: Item,
    journal: Journal | None = None,
    *,
    probabilities: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Predict one item and write its files, unless the journal knows that this was done before.

    Returns plain values: name, output (of a segmentation), files (their names), modality_checked (see `Outcome`),
    volumes_ml by label, dice if the truth is known (by label, None where neither map has it), not_compared (why a truth
    can't be used), probabilities by class (of a classification), mended and warnings (a line each) and reused. Raises
    MedlightError that names the file.
    """
    key = key_of(predictor, item, probabilities, force) if journal else ""
    known = journal.find(item, key) if journal else None
    if known is not None:
        return {**known, "reused": True}
    outcome = predict_checked(predictor, item.images, force=force, probabilities=probabilities, progress=progress)
    result: Result = {"name": item.name, "warnings": outcome.warnings, "modality_checked": outcome.modality_checked}
    result |= {"mended": outcome.mended} if outcome.mended else {}
    item.output.parent.mkdir(parents=True, exist_ok=True)
    if outcome.label is None:
        result["probabilities"] = dict(zip(predictor.bundle.outputs, outcome.chances, strict=True))
        files = [*write_report(predictor.bundle, item, outcome), item.beside(".png")]
        _save_picture(_told(predictor, outcome, result["probabilities"]), files[-1], "; ".join(outcome.warnings))
    else:
        files = _write(predictor, item, outcome, outcome.label, result)
    result["files"] = [file.name for file in files]
    if journal:
        journal.add(item, key, files, result)
    return {**result, "reused": False}


def _write(predictor: Predictor, item: Item, outcome: Outcome, labels: Volume, result: Result) -> list[Path]:
    """Write label map, picture and probabilities; returns the files, adds Dice and volumes to the result."""
    scan, note = outcome.scan, "; ".join(outcome.warnings)
    middle = len(labels.array) // 2  # of a clip
    overlays: list[Overlay] = [(labels.array[middle], "fill")]
    if item.truth is not None:
        try:
            truth = _truth(item.truth, scan, len(labels.array), predictor)
        except MedlightError as error:  # the scan is none the worse for it
            result["not_compared"] = nameless(str(error), item.truth)
        else:
            scores = dice(labels.array, truth, predictor.bundle.labels)
            result["dice"] = {name: None if math.isnan(score) else score for name, score in scores.items()}
            overlays.append((truth[middle], "outline"))
    files = [item.output, item.beside(".png")]
    if item.form == "dicom-seg":
        write_seg(labels, item.source, item.output, predictor.bundle.labels, note=note)
    else:
        write_on_grid(labels, item.source, item.output, note)
    channel = middle * (len(scan.array) // len(labels.array))
    _save_picture(picture(scan, overlays, predictor, channel), files[1], note)
    if outcome.spread is not None:
        files.append(item.beside("_probabilities.nii.gz"))
        write_on_grid(outcome.spread, item.source, files[-1], note)
    result["output"] = str(item.output)
    result |= _volumes(predictor, labels)
    return files


def _volumes(predictor: Predictor, labels: Volume) -> Result:
    """The size of each label in millilitres; nothing for pictures and films, which have none."""
    if len(labels.array) > 1 or labels.shape[2] == 1:
        return {}
    named = [label for label in predictor.bundle.labels if label.value]
    counts = np.zeros(max((label.value for label in named), default=0) + 1, np.int64)
    for plane in labels.array[0]:
        counts += np.bincount(plane.reshape(-1), minlength=len(counts))
    ml = float(abs(np.linalg.det(labels.affine[:3, :3]))) / 1000
    return {"volumes_ml": {label.name: round(float(counts[label.value]) * ml, 6) for label in named}}


def _told(predictor: Predictor, outcome: Outcome, chances: dict[str, float]) -> Pixels:
    """Draw the middle of a scan, and write the likeliest classes with their probabilities below."""
    scan = outcome.scan
    frames = predictor.preparation.clip_frames(outcome.scans) or 1
    ranked = sorted(chances.items(), key=lambda pair: -pair[1])
    lines = [f"{100 * chance:.1f} %  {name}" for name, chance in ranked[:_MOST_TOLD]]
    if len(ranked) > _MOST_TOLD:
        lines.append(f"and {len(ranked) - _MOST_TOLD} less likely")
    first = frames // 2 * (len(scan.array) // frames)
    if colours(scan) == 1:
        return picture(scan, [], predictor, first, lines=lines)
    span = (float(scan.array.min()), float(scan.array.max()))
    drawn = [picture(scan, [], predictor, first + part, span, lines)[..., part] for part in range(3)]
    return np.stack(drawn, axis=-1)


def picture(
    scan: Volume,
    overlays: list[Overlay],
    predictor: Predictor,
    channel: int = 0,
    span: tuple[float, float] | None = None,
    lines: Sequence[str] = (),
) -> Pixels:
    """Draw one channel of a scan with label maps of its own grid over it, turned to RAS; see `panel`."""
    image, affine = reorient(scan.array[channel], scan.affine, "RAS")
    if scan.shape[2] == 1 and image.shape[2] != 1:  # a 2D image is shown as it is, whatever plane it lies in
        image, affine = scan.array[channel], scan.affine
        turned = overlays
    else:
        turned = [(reorient(overlay, scan.affine, "RAS")[0], style) for overlay, style in overlays]
    spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return panel(image, spacing, turned, predictor.bundle.labels, span, lines)


def _save_picture(pixels: Pixels, file: Path, note: str) -> None:
    """Write a PNG; the note is its text ``Warning``."""
    said = PngInfo()
    if note:
        said.add_text("Warning", note)
    with replacing(file) as temporary:
        Image.fromarray(pixels).save(temporary, format="png", pnginfo=said)


def write_on_grid(volume: Volume, source: Any, out: Path, note: str = "") -> None:
    """Write a volume as NIfTI with the geometry of the scan it was made from; channels become the fourth dimension.

    Kept of a NIfTI header: both affines with their codes, and the unit of length. Nothing else: descriptions name
    people; ``note``, which may be cut, takes their place. A scan of another format has its geometry in the volume.
    """
    if not isinstance(source, Path) or format_of(source) != "nifti":
        write_nifti(volume, out, note)
        return
    original: Any = nib.load(source)
    array = volume.array[0] if len(volume.array) == 1 else np.moveaxis(volume.array, 0, -1)
    if len(original.shape) < 3:  # a 2D file stays one
        array = array.reshape(*original.shape, *array.shape[3:])
    image = type(original)(array, original.affine, dtype=array.dtype)
    image.header.set_xyzt_units(original.header.get_xyzt_units()[0])
    image.header["descrip"] = description(note)
    image.set_sform(*original.get_sform(coded=True))
    image.set_qform(*original.get_qform(coded=True), strip_shears=False)
    with replacing(out) as temporary:
        nib.save(image, temporary)


def _truth(file: Path, scan: Volume, frames: int, predictor: Predictor) -> npt.NDArray[Any]:
    truth = read_label(file, scan, predictor.bundle.labels)
    if truth.array.shape != (frames, *scan.shape):
        channels = "" if len(truth.array) == frames else f" with {len(truth.array)} channels instead of {frames}"
        raise MedlightError(f"{shown(file)}: has the shape {truth.shape}{channels}, the scan {scan.shape}")
    if grids_apart(scan.affine, truth.affine, scan.shape) > 0.05 * min(scan.spacing):
        raise MedlightError(f"{shown(file)}: lies elsewhere than the scan (another affine); resample it to the scan")
    known = {0, *(label.value for label in predictor.bundle.labels)}
    unknown = set(values_of(truth.array).tolist()) - known
    if unknown:
        raise MedlightError(f"{shown(file)}: has the value {min(unknown):g}, which the bundle's labels don't list")
    return truth.array.astype(np.int64)
