"""One DICOM series in, DICOM out: what the clinic's systems ask of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medlight.deploy.runtime.predictor import Predictor, Progress
from medlight.errors import MedlightError
from medlight.prepare.contents import sha256
from medlight.prepare.digests import content_digest
from medlight.scans import read
from medlight.scans.files import replacing, shown
from medlight.scans.seg_writing import write_seg

Result = dict[str, Any]


def predict_series(
    predictor: Predictor, series: Path, out: Path, *, force: bool = False, progress: Progress | None = None
) -> Result:
    """Predict one DICOM series (a folder, a zip or a file) and write the result into the folder ``out``.

    A segmentation is written as DICOM-SEG, a classification as JSON; both are called by the series' content, so that
    nothing of the patient is in a name.
    force: what does not fit the bundle (modality, spacing, missing slices) is a warning in the result and in what is
    written, and no refusal.

    Returns plain values: name, files (the names of those written in ``out``), warnings, and ``volumes_ml`` by label or
    ``probabilities`` by class. Raises MedlightError that names the series and the mend.
    """
    scan = read(series, predictor.preparation.mends)
    try:
        prediction = predictor.predict(scan, progress)
    except MedlightError as error:
        raise MedlightError(f"{shown(series)}: {error}") from None
    name = f"case-{sha256([['image', content_digest(series)]])[:10]}"
    result: Result = {"name": name, "warnings": []}
    out.mkdir(parents=True, exist_ok=True)
    if prediction.label is None:
        chances = dict(zip(predictor.bundle.outputs, prediction.probabilities.tolist(), strict=True))
        file = out / f"{name}.json"
        with replacing(file) as temporary:
            import json

            temporary.write_text(json.dumps(chances))
        return result | {"probabilities": chances, "files": [file.name]}
    file = out / f"{name}.dcm"
    write_seg(prediction.label, series, file, predictor.bundle.labels)
    return result | {"files": [file.name]}
