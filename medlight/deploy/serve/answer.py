"""An upload predicted: as a label map, a DICOM-SEG, or figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime.checked import predict_checked
from medlight.deploy.runtime.files import predict_item, write_on_grid
from medlight.deploy.runtime.journal import Item
from medlight.deploy.runtime.predictor import Predictor, Progress
from medlight.deploy.serve.upload import Limits, RefusedError, as_scan
from medlight.scans import Volume
from medlight.scans.read import format_of

Form = Literal["nifti", "dicom-seg", "json"]
FORMS: tuple[Form, ...] = ("nifti", "dicom-seg", "json")


@dataclass(frozen=True)
class Answer:
    """What is sent back. warnings: what was mended, or would have been refused without ``--force``."""

    content: bytes
    media_type: str
    name: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """An upload that can be predicted: scans by contrast, and the form in which the answer goes back."""

    scans: dict[str, Path]
    form: Form

    @property
    def first(self) -> Path:
        """The scan whose grid the answer has."""
        return next(iter(self.scans.values()))


def forms(predictor: Predictor) -> tuple[Form, ...]:
    """The forms that a bundle's answers can have: a class is no label map, a clip's label maps are no DICOM-SEG."""
    if predictor.bundle.task == "classification":
        return ("json",)
    return ("nifti", "json") if predictor.preparation.frames == "clip" else FORMS


def asked(predictor: Predictor, files: Mapping[str, Path], form: Form | None, limits: Limits) -> Asked:
    """Look at what was uploaded, files by contrast; nothing of it is predicted yet.

    form: what is asked for; by default, of those that can be, a DICOM-SEG where the first contrast is DICOM, else
    NIfTI, and JSON of a class. Raises RefusedError for uploads that are no scans and forms that can't be.
    """
    can = forms(predictor)
    if form and form not in can:
        kind = "tells classes" if can == ("json",) else "has a label map for each frame of a clip"
        raise RefusedError(400, f"the bundle {kind}, which can't be {form}; ask for format={' or '.join(can)}")
    scans = {name: as_scan(file, limits) for name, file in _in_order(files, predictor.bundle).items()}
    first = next(iter(scans))
    from_dicom = format_of(scans[first]) == "dicom"
    if form == "dicom-seg" and not from_dicom:
        which = "the scan" if len(scans) == 1 else f"{first}, whose grid it would have,"
        reason = f"a DICOM-SEG refers to DICOM images, and {which} is none; send its series as a zip, or ask for nifti"
        raise RefusedError(400, reason)
    return Asked(scans, form or ("dicom-seg" if from_dicom and "dicom-seg" in can else can[0]))


def answer(predictor: Predictor, upload: Asked, force: bool, progress: Progress) -> Answer:
    """Predict an upload. Raises MedlightError where the scan does not fit the bundle."""
    if upload.form == "dicom-seg":
        return _dicom(predictor, upload, progress, force)
    outcome = predict_checked(predictor, upload.scans, force=force, progress=progress)
    if upload.form == "json" or outcome.label is None:
        figures = _figures(predictor.bundle, outcome.chances, outcome.label)
        text = json.dumps({"task": predictor.bundle.task, **figures, "warnings": outcome.warnings})
        return Answer(text.encode() + b"\n", "application/json", warnings=outcome.warnings)
    out = upload.first.parent / "out.nii.gz"
    write_on_grid(outcome.label, upload.first, out, "; ".join(outcome.warnings))
    return Answer(out.read_bytes(), "application/gzip", "prediction.nii.gz", outcome.warnings)


def _in_order(files: Mapping[str, Path], bundle: Bundle) -> dict[str, Path]:
    """Return the files as the network takes them; one may be called anything."""
    if len(files) == 1:
        return {"image": next(iter(files.values()))}
    channels = [str(name) for name in bundle.data["channels"]]
    if set(files) != set(channels):
        raise RefusedError(
            400, f"send one file, or a file for each contrast, its field called so: {', '.join(channels)}"
        )
    return {name: files[name] for name in channels}


def _dicom(predictor: Predictor, upload: Asked, progress: Progress, force: bool) -> Answer:
    item = Item("prediction", upload.scans, upload.first.parent / "out" / "prediction.dcm")
    result = predict_item(predictor, item, force=force, progress=progress)
    return Answer(item.output.read_bytes(), "application/dicom", item.output.name, list(result["warnings"]))


def _figures(bundle: Bundle, chances: list[float], label: Volume | None) -> dict[str, Any]:
    """Return the probability of each class, or the size of each label: voxels, and millilitres."""
    if label is None:
        return {"probabilities": dict(zip(bundle.outputs, chances, strict=True))}
    counts = np.bincount(label.array.ravel())
    ml = float(abs(np.linalg.det(label.affine[:3, :3]))) / 1000
    labels = [entry for entry in bundle.labels if entry.value]
    sizes = [int(counts[entry.value]) if entry.value < len(counts) else 0 for entry in labels]
    return {
        "labels": [
            {"value": entry.value, "name": entry.name, "voxels": size, "ml": round(size * ml, 4)}
            for entry, size in zip(labels, sizes, strict=True)
        ]
    }
