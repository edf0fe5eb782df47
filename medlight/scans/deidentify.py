"""De-identified copies of a tree of DICOM files, by the Basic Application Level Confidentiality Profile (PS3.15 E).

`medlight.scans.dicom.confidential` cleans one data set; here is what is around it: which objects can be cleaned at all,
what their pixels may show, and names of files and folders that say nothing.
"""

from __future__ import annotations

import re
import secrets
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medlight.errors import MedlightError, UsageError
from medlight.scans.dicom.frames import Place
from medlight.scans.files import apart, nameless, replacing, shown
from medlight.scans.workers import mapped

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medlight.scans.dicom.confidential import Pseudonyms

_DIRECTORY = "1.2.840.10008.1.3.10"
_REPORTS, _DOCUMENTS = "1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.104."
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture, its multi-frame kinds below it
_BURNED = ("US", "IVUS", "SC", "XC", "ES", "OT", "DOC")  # screens and cameras: what is written there is in the pixels


@dataclass(frozen=True)
class Copied:
    """What became of one object.

    file: the copy, relative to the output folder; None where the object was left out, and ``reason`` says why (it names
    no file). modality: of a copy. risk: what its pixels may still show; empty where there is no sign of anything.
    """

    place: Place
    file: Path | None = None
    modality: str = ""
    risk: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Copies:
    """What `deidentify` did: each object in order, and how many files were no DICOM."""

    objects: list[Copied] = field(default_factory=list)
    passed_over: int = 0


def deidentify(source: Path, out: Path, workers: int = 0, progress: Callable[[int, int], None] | None = None) -> Copies:
    """Write de-identified copies of every DICOM object below ``source`` into ``out``.

    out: an empty folder, or one that is not there yet, outside ``source``. Copies lie in ``P.../ct-.../....dcm``: the
    patient's pseudonym, the series, the object. All three, and every UID, are made with a secret that is drawn anew for
    each call and kept nowhere: within one call references between objects still lead to each other, and two calls give
    different names. workers: processes. progress: called with objects done and their number.

    Left out, each with its reason: what can't be read, documents (PDF, CDA), structured reports, and objects of a
    vendor's own kind without pixels. Raises UsageError where ``source`` is absent or ``out`` can't be used.
    """
    from medlight.scans.dicom.confidential import Pseudonyms
    from medlight.scans.dicom.tree import objects

    _check(source, out)
    tree = objects([source])
    work = partial(_copy, out, Pseudonyms(secrets.token_bytes(32)))
    done = [Copied(place, reason=_general(fault, place)) for place, fault in tree.faults]
    total = len(tree.places)
    for number, copied in enumerate(mapped(work, tree.places, workers, chunk=16), start=1):
        if copied is not None:
            done.append(copied)
        if progress:
            progress(number, total)
    return Copies(done, tree.passed_over)


def _general(fault: str, place: Place) -> str:
    """A fault of a tree without names: what is in brackets may be the files that a DICOMDIR misses."""
    return re.sub(r"\s*\([^)]*\)", "", nameless(fault, place.path, place.member))


def _check(source: Path, out: Path) -> None:
    if not source.exists():
        raise UsageError(f"{shown(source)}: no such file or folder")
    apart(source, out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is not an empty folder; mend: give a new one, each run draws its own pseudonyms")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: can't be made ({error.strerror}); mend: give another OUT") from None


def _copy(out: Path, names: Pseudonyms, place: Place) -> Copied | None:
    """Copy one object; None for a DICOMDIR, which is an index of files by their old names."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values, which may be a patient's
            return _cleaned(out, names, place)
    except MedlightError as error:
        return Copied(place, reason=nameless(str(error), place.path, place.member))
    except OSError as error:
        return Copied(place, reason=error.strerror or type(error).__name__)
    except Exception as error:  # pydicom: whatever the bytes make it raise
        return Copied(place, reason=f"can't be written again ({type(error).__name__})")


def _cleaned(out: Path, names: Pseudonyms, place: Place) -> Copied | None:
    from medlight.scans.dicom.header import parse

    dataset = parse(place, pixels=True)
    kind = str(dataset.get("SOPClassUID", ""))
    if kind == _DIRECTORY:
        return None
    reason = _impossible(dataset, kind)
    if reason:
        return Copied(place, reason=reason)
    risk = _risk(dataset, kind)
    file = _write(dataset, place, out, names)
    return Copied(place, file, str(dataset.get("Modality", "")), risk)


def _write(dataset: Dataset, place: Place, out: Path, names: Pseudonyms) -> Path:
    """Clean a data set and write it; returns where, relative to ``out``."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    from medlight.scans.dicom.codestream import blanked
    from medlight.scans.dicom.confidential import clean

    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if not syntax and dataset.original_encoding == (False, True):
        syntax = ExplicitVRLittleEndian
    number = names.digest(f"object {dataset.SOPInstanceUID} {place}")[:16]
    clean(dataset, names)
    dataset.file_meta, dataset.preamble = FileMetaDataset(), None  # the old ones may say who sent it
    if syntax:
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax.is_compressed and "PixelData" in dataset:
            dataset["PixelData"].value = blanked(dataset.PixelData)
    series = names.digest(f"series {dataset.get('SeriesInstanceUID', '')}")[:10]
    kind = "".join(letter for letter in str(dataset.get("Modality", "")) if letter.isalnum()).lower() or "dicom"
    file = Path(str(dataset.PatientID)) / f"{kind}-{series}" / f"{number}.dcm"
    with replacing(out / file) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
    return file


def _impossible(dataset: Dataset, kind: str) -> str:
    """Why an object can't be cleaned; empty where it can."""
    if not dataset.get("SOPInstanceUID") or not kind:
        return "has no SOP Class or SOP Instance UID, so it can't be written as a DICOM file"
    if "EncapsulatedDocument" in dataset or kind.startswith(_DOCUMENTS):
        return "an encapsulated document (PDF, CDA, ...): its content can't be cleaned"
    if kind.startswith(_REPORTS):
        return "a structured report: its content is text about the patient"
    pixels = any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    if not kind.startswith("1.2.840.10008.") and not pixels:
        return "an object of a vendor's own kind, without pixels: what it holds is not known"
    return ""


def _risk(dataset: Dataset, kind: str) -> str:
    """What identity the pixels may show (PS3.15 E.3.1 and E.3.2: cleaning them is not part of the basic profile)."""
    found = []
    burned = str(dataset.get("BurnedInAnnotation", "")).upper()
    modality = str(dataset.get("Modality", "")).upper()
    if burned == "YES":
        found.append("text is burned into the pixels (BurnedInAnnotation is YES)")
    elif burned != "NO" and (modality in _BURNED or kind == _CAPTURE or kind.startswith(f"{_CAPTURE}.")):
        found.append("text may be burned into the pixels (a screen or a camera, and the file doesn't say NO)")
    elif "LABEL" in str(dataset.get("ImageType", "")):
        found.append("a picture of a slide's label")
    if str(dataset.get("RecognizableVisualFeatures", "")).upper() == "YES":
        found.append("a face can be recognised (RecognizableVisualFeatures is YES)")
    groups = {tag.group for tag in dataset.keys() if tag.group & 0xFF00 == 0x6000}  # noqa: SIM118
    if any((group, 0x0010) in dataset and (group, 0x3000) not in dataset for group in groups):
        found.append("an overlay in the spare bits of the pixels")
    return "; ".join(found)
