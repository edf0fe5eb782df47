"""Predicting files: label maps in the input's own geometry, pictures, Dice where the truth is known; resumable."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

from medlight.deploy.bundle import DESCRIPTION, sha256
from medlight.deploy.runtime.dice import dice
from medlight.deploy.runtime.predictor import Prediction, Predictor, Progress
from medlight.errors import MedlightError
from medlight.prepare.checks import grids_apart
from medlight.prepare.digests import content_digest
from medlight.scans import Volume, read, reorient, write_nifti
from medlight.scans.files import nameless, replacing, shown
from medlight.scans.labels import read_label
from medlight.scans.picture import Overlay, panel
from medlight.scans.read import format_of

JOURNAL = "predictions.json"
Result = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One thing to predict: its name, its contrasts (files, or folders of DICOM), the label map to write, the truth."""

    name: str
    images: Mapping[str, Path]
    output: Path
    truth: Path | None = None

    @property
    def picture(self) -> Path:
        """Where the picture goes."""
        return beside(self.output, ".png")

    @property
    def probabilities(self) -> Path:
        """Where the probabilities go."""
        return beside(self.output, "_probabilities.nii.gz")


def beside(output: Path, ending: str) -> Path:
    """Return the file beside a label map with another ending."""
    return output.with_name(output.name.removesuffix(".gz").removesuffix(".nii") + ending)


class Journal:
    """What was predicted in a folder, from what, with what: the same again needs no work.

    Each entry is written after the files of its case are whole, so a stopped run goes on where it was.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / JOURNAL
        try:
            self._entries: dict[str, Result] = json.loads(self._file.read_text())
        except (OSError, ValueError):  # none yet, or not ours: everything is predicted
            self._entries = {}

    def find(self, item: Item, key: str) -> Result | None:
        """Return the result of an equal prediction whose files are all there."""
        entry = self._entries.get(item.name)
        if not entry or entry.get("key") != key:
            return None
        there = all((self._file.parent / name).is_file() for name in entry["files"])
        return dict(entry["result"]) if there else None

    def add(self, item: Item, key: str, files: list[Path], result: Result) -> None:
        """Write down a finished case."""
        names = [file.name for file in files]
        self._entries[item.name] = {"key": key, "files": names, "result": result}
        with replacing(self._file) as temporary:
            temporary.write_text(json.dumps(self._entries, indent=1) + "\n")


def predict_item(
    predictor: Predictor, item: Item, journal: Journal, *, probabilities: bool = False, progress: Progress | None = None
) -> Result:
    """Predict one item and write its files, unless that was done before.

    Returns plain values: name, output, dice if the truth is known (by label, None where neither map has it),
    not_compared (why a truth can't be used), probabilities (by class) for classification, mended (what was, a line
    each) and reused. Raises MedlightError that names the file.
    """
    key = _key(predictor, item, probabilities)
    known = journal.find(item, key)
    if known is not None:
        return {**known, "reused": True}
    scans = {name: read(path, predictor.preparation.mends) for name, path in item.images.items()}
    first = next(iter(scans.values()))
    try:
        prediction = predictor.predict(scans, progress)
    except MedlightError as error:
        raise MedlightError(f"{shown(next(iter(item.images.values())))}: {error}") from None
    result: Result = {"name": item.name}
    mended = [note for scan in scans.values() for note in scan.meta.get("mended", ())]
    result |= {"mended": mended} if mended else {}
    if prediction.label is None:
        values = prediction.probabilities.tolist()
        result["probabilities"] = dict(zip(predictor.bundle.outputs, values, strict=True))
        files: list[Path] = []
    else:
        files = _write(predictor, item, first, prediction, result, probabilities)
    journal.add(item, key, files, result)
    return {**result, "reused": False}


def _write(
    predictor: Predictor, item: Item, scan: Volume, prediction: Prediction, result: Result, probabilities: bool
) -> list[Path]:
    """Write label map, picture and probabilities; returns the files, adds Dice to the result."""
    assert prediction.label is not None
    labels, source = prediction.label, next(iter(item.images.values()))
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
    files = [item.output, item.picture]
    write_on_grid(labels, source, item.output)
    with replacing(item.picture) as temporary:
        channel = middle * (len(scan.array) // len(labels.array))
        Image.fromarray(picture(scan, overlays, predictor, channel)).save(temporary, format="png")
    if probabilities:
        files.append(item.probabilities)
        write_on_grid(predictor.probability_map(prediction, scan), source, item.probabilities)
    result["output"] = str(item.output)
    return files


def picture(scan: Volume, overlays: list[Overlay], predictor: Predictor, channel: int = 0) -> npt.NDArray[np.uint8]:
    """Draw one channel of a scan with label maps of its own grid over it, turned to RAS."""
    image, affine = reorient(scan.array[channel], scan.affine, "RAS")
    if scan.shape[2] == 1 and image.shape[2] != 1:  # a 2D image is shown as it is, whatever plane it lies in
        image, affine = scan.array[channel], scan.affine
        turned = overlays
    else:
        turned = [(reorient(overlay, scan.affine, "RAS")[0], style) for overlay, style in overlays]
    spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return panel(image, spacing, turned, predictor.bundle.labels)


def write_on_grid(volume: Volume, source: Path, out: Path) -> None:
    """Write a volume as NIfTI with the geometry of the scan it was made from; channels become the fourth dimension.

    Kept of a NIfTI header: both affines with their codes, and the unit of length. Nothing else: descriptions name
    people. A scan of another format has its geometry in the volume.
    """
    if format_of(source) != "nifti":
        write_nifti(volume, out)
        return
    original: Any = nib.load(source)
    array = volume.array[0] if len(volume.array) == 1 else np.moveaxis(volume.array, 0, -1)
    if len(original.shape) < 3:  # a 2D file stays one
        array = array.reshape(*original.shape, *array.shape[3:])
    image = type(original)(array, original.affine, dtype=array.dtype)
    image.header.set_xyzt_units(original.header.get_xyzt_units()[0])
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
    unknown = set(np.unique(truth.array).tolist()) - known
    if unknown:
        raise MedlightError(f"{shown(file)}: has the value {min(unknown):g}, which the bundle's labels don't list")
    return truth.array.astype(np.int64)


def _key(predictor: Predictor, item: Item, probabilities: bool) -> str:
    """Digest of all that decides a result: the bundle, the files' content, what is asked for."""
    parts = [sha256(predictor.bundle.root / DESCRIPTION), str(probabilities), item.output.name]
    files = [*item.images.values(), *([item.truth] if item.truth else [])]
    parts += [content_digest(file) if file.exists() else "absent" for file in files]
    mends = predictor.preparation.mends
    parts += [json.dumps(mends.to_dict(), sort_keys=True)] if mends else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
