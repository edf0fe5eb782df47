"""From the files of a scan to what a bundle says of it, with every check on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.deploy.runtime import memory
from medlight.deploy.runtime.fit_for import checks_modality, misfits, refuse, told
from medlight.deploy.runtime.predictor import Predictor, Progress
from medlight.errors import MedlightError
from medlight.scans import Volume, read
from medlight.scans.files import shown

if TYPE_CHECKING:
    from medlight.scans.dicom.frames import Stack
    from medlight.scans.dicom.mend import Mends

    Source = Path | Stack


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a bundle says of one scan.

    scans: as they were read, by contrast. label: of a segmentation, on the grid of the first scan. chances: of a
    classification, in the order of the bundle's outputs. spread: the probabilities of a segmentation on the scan's
    grid, where they were asked for. mended: what was mended in the series. warnings: that, and what does not fit the
    bundle but was forced; nothing of the patient is in them. modality_checked: whether both the bundle and the scans
    tell a modality, so that they could be compared.
    """

    scans: dict[str, Volume]
    label: Volume | None
    chances: list[float]
    spread: Volume | None
    mended: list[str]
    warnings: list[str]
    modality_checked: bool

    @property
    def scan(self) -> Volume:
        """The first scan, whose grid the label map has."""
        return next(iter(self.scans.values()))


def predict_checked(
    predictor: Predictor,
    sources: Mapping[str, Source],
    *,
    force: bool = False,
    probabilities: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Read the contrasts of one examination (files, folders or stacks of DICOM) and predict them.

    force: a modality or a voxel size that the bundle was not trained for, and a series that has to be mended, is a
    warning and no refusal. probabilities: return a segmentation's too.

    Raises MedlightError that names the scan and the mend: what can't be read, does not fit the bundle, or takes more
    memory than is free.
    """
    mends = _mends(predictor, force)
    scans = {name: read_source(source, mends) for name, source in sources.items()}
    mended = [note for scan in scans.values() for note in scan.meta.get("mended", ())]
    try:
        predictor.check(scans)
        found = misfits(predictor.bundle.data, predictor.preparation, scans)
        if not force:
            refuse(found)
        options: dict[str, Any] = {"probabilities": probabilities, "batch": predictor.batch}
        batch = memory.affordable(predictor.bundle, predictor.preparation, scans, **options)
        label, chances, spread = None, [], None
        if predictor.bundle.task == "classification":
            chances = [float(value) for value in predictor.predict(scans, progress, batch).probabilities]
        elif probabilities:
            whole = predictor.predict(scans, progress, batch)
            label, spread = whole.label, predictor.probability_map(whole, next(iter(scans.values())))
        else:
            label = predictor.segment(scans, progress, batch)
    except MedlightError as error:
        raise MedlightError(f"{named(next(iter(sources.values())))}: {error}") from None
    warnings = [f"forced: {text}" for text in found] + mended
    compared = checks_modality(predictor.bundle.data) and told(scans.values())
    return Outcome(scans, label, chances, spread, mended, warnings, compared)


def read_source(source: Source, mends: Mends | None = None) -> Volume:
    """Read a file, a folder, or a stack that a survey found."""
    if isinstance(source, Path):
        return read(source, mends)
    from medlight.scans.dicom.load import load
    from medlight.scans.dicom.mend import Mends

    return load(source, mends or Mends())


def named(source: Source) -> str:
    """What a scan is called for a person: the file, or the folder or zip that it lies in."""
    if isinstance(source, Path):
        return shown(source)
    place = source.frames[0].place
    return f"{place.title if len({f.place for f in source.frames}) == 1 else shown(place.home)} ({source.id})"


def _mends(predictor: Predictor, force: bool) -> Mends | None:
    """The mends that were asked for; with force all others too, unless ``error`` was asked for by name."""
    if not force:
        return predictor.preparation.mends
    from medlight.scans.dicom.mend import MENDS, Mends

    usual: dict[str, str] = dict(MENDS.items())
    return Mends.from_mapping({**usual, **predictor.preparation.on})
