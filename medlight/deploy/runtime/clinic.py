"""One DICOM series in, DICOM out: what the clinic's systems ask of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medlight.deploy.runtime.files import predict_item
from medlight.deploy.runtime.journal import Item, Result, content_of
from medlight.deploy.runtime.predictor import Predictor, Progress
from medlight.prepare.contents import sha256

if TYPE_CHECKING:
    from medlight.deploy.runtime.checked import Source


def predict_series(
    predictor: Predictor, series: Source, out: Path, *, force: bool = False, progress: Progress | None = None
) -> Result:
    """Predict one DICOM series (a folder, a zip, a file or a stack) and write the result into the folder ``out``.

    A segmentation is written as DICOM-SEG with a picture, a classification as a report in the DICOM JSON model; all are
    called by the series' content, so that nothing of the patient is in a name.
    force: what does not fit the bundle (modality, voxel size) or has to be mended (missing slices) is a warning in the
    result and in what is written, and no refusal.

    Returns what `predict_item` does: name, files (the names of those written in ``out``), warnings, and ``volumes_ml``
    by label or ``probabilities`` by class. Raises MedlightError that names the series and the mend.
    """
    name = f"case-{sha256([['image', content_of(series)]])[:10]}"
    item = Item(name, {"image": series}, out / f"{name}.dcm")
    return predict_item(predictor, item, force=force, progress=progress)
