"""A classification as a structured report in the DICOM JSON model, after TID 1500 of PS3.16.

Simplified: no observer, no patient and no study, so that it can be kept beside pictures. The images it was made of are
named by their UIDs, which only this file holds: a system of the clinic finds by them what the report is of.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import Dataset
from pydicom.uid import generate_uid

from medlight.deploy.bundle import Bundle
from medlight.scans.files import replacing
from medlight.scans.read import format_of

if TYPE_CHECKING:
    from medlight.deploy.runtime.checked import Outcome, Source
    from medlight.deploy.runtime.journal import Item

Code = tuple[str, str, str]

COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
_PERCENT: Code = ("%", "UCUM", "percent")
_CERTAINTY: Code = ("111012", "DCM", "Certainty of Finding")
_LONGEST_CODE, _LONGEST_MEANING = 16, 64  # characters of SH and LO (PS3.5 6.2)


def write_report(bundle: Bundle, item: Item, outcome: Outcome) -> list[Path]:
    """Write the report of a scan that came as DICOM; returns the file, none for other formats."""
    images = [image for source in item.images.values() for image in _images(source)]
    if not images:
        return []
    chances = dict(zip(bundle.outputs, outcome.chances, strict=True))
    file = item.beside("_sr.json")
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(report(chances, images, outcome.warnings).to_json_dict(), indent=1) + "\n")
    return [file]


def report(chances: dict[str, float], images: Sequence[tuple[str, str]], warnings: Sequence[str]) -> Dataset:
    """Return an Imaging Measurement Report: each class as a finding with its certainty.

    chances: probability by class, 0 to 1. images: SOP Class and SOP Instance UIDs of what was predicted.
    """
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = COMPREHENSIVE_SR, generate_uid(), "SR"
    made.CompletionFlag, made.VerificationFlag = "COMPLETE", "UNVERIFIED"
    made.update(_container(None, ("126000", "DCM", "Imaging Measurement Report"), []))
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "1500"
    made.ContentTemplateSequence = [template]
    library = _container("CONTAINS", ("111028", "DCM", "Image Library"), [_image(*image) for image in images])
    codes = _codes(chances)
    groups = [_group(codes[name], chance) for name, chance in sorted(chances.items(), key=lambda pair: -pair[1])]
    measured = _container("CONTAINS", ("126010", "DCM", "Imaging Measurements"), groups)
    notes = [_text(("121106", "DCM", "Comment"), warning) for warning in warnings]
    made.ContentSequence = [library, measured, *notes]
    return made


def _group(code: Code, chance: float) -> Dataset:
    finding = _content("CONTAINS", "CODE", ("121071", "DCM", "Finding"))
    finding.ConceptCodeSequence = [_coded(code)]
    number = _content("CONTAINS", "NUM", _CERTAINTY)
    value = Dataset()
    value.NumericValue = f"{100 * chance:.6g}"
    value.FloatingPointValue = 100 * chance
    value.MeasurementUnitsCodeSequence = [_coded(_PERCENT)]
    number.MeasuredValueSequence = [value]
    return _container("CONTAINS", ("125007", "DCM", "Measurement Group"), [finding, number])


def _codes(names: Iterable[str]) -> dict[str, Code]:
    """Return a code for each class, which no terminology lists: its name where that is short enough and no other's.

    Else the name's beginning and digest, so that no two are alike and each is the same in every report of a bundle.
    """
    written = {name: name.upper().replace(" ", "_").replace("\\", "_") for name in names}
    times = Counter(written.values())
    codes: dict[str, Code] = {}
    for name, value in written.items():
        if len(value) > _LONGEST_CODE or times[value] > 1:
            value = f"{value[:7]}_{hashlib.sha256(name.encode()).hexdigest()[:8].upper()}"
        meaning = name.replace("\\", "_")[:_LONGEST_MEANING]  # a backslash would make two values of it
        codes[name] = (value, "99MEDLIGHT", meaning)
    return codes


def _container(relationship: str | None, concept: Code, content: Sequence[Dataset]) -> Dataset:
    made = _content(relationship, "CONTAINER", concept)
    made.ContinuityOfContent = "SEPARATE"
    if content:
        made.ContentSequence = list(content)
    return made


def _image(sop_class: str, sop_instance: str) -> Dataset:
    made = _content("CONTAINS", "IMAGE", None)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class, sop_instance
    made.ReferencedSOPSequence = [reference]
    return made


def _text(concept: Code, text: str) -> Dataset:
    made = _content("CONTAINS", "TEXT", concept)
    made.TextValue = text
    return made


def _content(relationship: str | None, kind: str, concept: Code | None) -> Dataset:
    made = Dataset()
    if relationship:
        made.RelationshipType = relationship
    made.ValueType = kind
    if concept:
        made.ConceptNameCodeSequence = [_coded(concept)]
    return made


def _coded(code: Code) -> Any:
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = code
    return made


def _images(source: Source) -> list[tuple[str, str]]:
    """SOP Class and Instance UIDs of the images of a DICOM source, each once; none of other formats."""
    from medlight.scans.dicom.header import parse
    from medlight.scans.dicom.survey import survey

    if isinstance(source, Path) and format_of(source) != "dicom":
        return []
    stacks = survey([source]).stacks if isinstance(source, Path) else [source]
    volumes = [stack for stack in stacks if stack.kind == "image"]
    chosen = [stack for stack in volumes if stack.verdict.status != "not-a-volume"] or volumes
    places = dict.fromkeys(frame.place for stack in chosen for frame in stack.frames)
    headers = [parse(place) for place in places]
    return [(str(header.get("SOPClassUID", "")), str(header.get("SOPInstanceUID", ""))) for header in headers]
