"""The Basic Application Level Confidentiality Profile of DICOM PS3.15, Annex E, carried out on one data set.

What is done with which attribute is Table E.1-1, edition 2026c, as the package dicom-anonymizer carries it. How it is
done is here: at every depth of nesting (PS3.15 E.1.1), with UIDs replaced alike in every process, with dates gone
rather than turned to year 1, and more strictly than the table in one respect: what it does not list, and may hold free
text, a name or a date, stays only if it is known to be technical.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

METHOD = "Basic Application Confidentiality Profile, PS3.15 2026c"
_DUMMY = "ANONYMIZED"
_DATES = {"DA": "19000101", "DT": "19000101000000", "TM": "000000"}
_BYTES = ("OB", "OW", "OF", "OD", "OL", "OV", "UN")
_TEXT = ("LO", "SH", "ST", "LT", "UT", "UC")
_CS = re.compile(r"[A-Z0-9 _]{0,16}")
_STANDARD_UID = re.compile(r"1\.2\.840\.10008(\.\d+)+")
_LETTERS = 4  # a shorter word of a name is found in too much that is no name


def _tags(keywords: str) -> frozenset[int]:
    tags = [tag_for_keyword(keyword) for keyword in keywords.split()]
    assert None not in tags
    return frozenset(tag for tag in tags if tag is not None)


# Text that says how the pixels were made and what they mean; all other text that the table doesn't list is emptied.
_TECHNICAL = _tags(
    "Manufacturer ManufacturerModelName SoftwareVersions ConvolutionKernel FilterType SequenceName PulseSequenceName "
    "ReceiveCoilName TransmitCoilName ImagedNucleus ResonantNucleus RescaleType ModalityLUTType "
    "Radiopharmaceutical AttenuationCorrectionMethod ReconstructionMethod ScatterCorrectionMethod "
    "CodeValue LongCodeValue CodingSchemeDesignator CodingSchemeVersion CodeMeaning LUTLabel "
    "SegmentLabel SegmentAlgorithmName AlgorithmName AlgorithmVersion OpticalPathIdentifier"
)
# Without these no image can be shown, whatever its patient is called.
_NEEDED = _tags("PhotometricInterpretation PresentationLUTShape SegmentationType DimensionOrganizationType")
_BULK = _tags(
    "PixelData FloatPixelData DoubleFloatPixelData ExtendedOffsetTable ExtendedOffsetTableLengths LUTData ICCProfile "
    "WaveformData RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData "
    "SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData "
    "SegmentedBluePaletteColorLookupTableData RedPaletteColorLookupTableDescriptor "
    "GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor"
)
# They name kinds and vocabularies, not instances.
_KINDS = _tags(
    "SOPClassUID ReferencedSOPClassUID ReferencedRelatedGeneralSOPClassUIDInFile RelatedGeneralSOPClassUID "
    "OriginalSpecializedSOPClassUID CodingSchemeUID ContextUID MappingResourceUID"
)
_NAMING = _tags("PatientID OtherPatientIDs AccessionNumber InstitutionName InstitutionAddress MedicalRecordLocator")


@dataclass(frozen=True)
class Pseudonyms:
    """New names for old ones, the same wherever the secret is the same; without it nothing leads back."""

    secret: bytes

    def digest(self, text: str) -> str:
        """64 hexadecimal digits in place of a text."""
        return hmac.new(self.secret, text.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()

    def uid(self, old: str) -> str:
        """A UID in place of another (PS3.5 B.2: 2.25 and a number of 128 bits); one that DICOM defines stays."""
        if not old or _STANDARD_UID.fullmatch(old):
            return old
        return f"2.25.{int(self.digest(f'uid {old}')[:32], 16)}"

    def subject(self, dataset: Dataset) -> str:
        """A name for the patient: by the ID and its issuer, else by name and birth date, else by the study."""
        for keywords in ("PatientID IssuerOfPatientID", "PatientName PatientBirthDate", "StudyInstanceUID"):
            values = [str(_value(dataset, keyword)).strip() for keyword in keywords.split()]
            if values[0]:
                return f"P{self.digest(' '.join([keywords, *values]))[:12]}"
        return "P0"


def clean(dataset: Dataset, names: Pseudonyms) -> None:
    """De-identify a data set in place, and say in it that this was done (PS3.15 E.1.1, PS3.3 C.12.1.1.1).

    The patient's ID and name become one pseudonym, so that subjects can still be told apart. UIDs are replaced
    consistently, overlays and private attributes go, regions of an RTSTRUCT are called by their numbers. What can't be
    decoded goes too: what can't be read can't be checked.
    """
    subject = names.subject(dataset)
    _walk(dataset, names, _told(dataset))
    for item in dataset.get("StructureSetROISequence") or []:
        item.ROIName = f"ROI {item.get('ROINumber', '')}".strip()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientID = dataset.PatientName = subject
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    dataset.DeidentificationMethodCodeSequence = [code]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"


def _walk(dataset: Dataset, names: Pseudonyms, told: frozenset[str], blank: bool = False) -> None:
    """Clean every element; blank: within a sequence that is to keep nothing but its shape."""
    actions = _actions()
    for tag in list(dataset.keys()):
        element = _element(dataset, tag)
        if element is None or not _stays(element, actions.get(int(tag)), names, told, blank):
            del dataset[tag]


def _stays(element: DataElement, action: str | None, names: Pseudonyms, told: frozenset[str], blank: bool) -> bool:
    """Change one element as its action asks; False: it has to go."""
    tag = element.tag
    if tag.is_private or tag.group < 8 or tag.group & 0xFF00 in (0x5000, 0x6000) or action == "X":
        return False  # groups 50xx and 60xx: curves and overlays
    if element.VR == "SQ":
        if action in ("Z", "X/Z"):
            element.clear()
        elif action in (None, "U", "X/Z/U*", "D"):
            for item in element.value:
                _walk(item, names, told, blank or action == "D")
        else:
            return False
        return True
    if element.VR == "UI":
        _replace(element, lambda old: old if tag in _KINDS else names.uid(str(old)))
        return True
    if action in ("Z", "X/Z", "U", "X/Z/U*"):
        element.clear()
    elif action or (blank and element.VR != "CS"):
        _fill(element)
    else:
        return _unlisted(element, told)
    return True


def _unlisted(element: DataElement, told: frozenset[str]) -> bool:
    """Clean an element that the table doesn't list, by what its representation can hold (PS3.5 6.2)."""
    vr = str(element.VR)
    if vr == "CS":
        free = element.tag not in _NEEDED
        _replace(element, lambda part: "" if not _CS.fullmatch(part) or (free and _named(part, told)) else part)
    elif vr in _TEXT:
        if element.tag not in _TECHNICAL:
            element.clear()
        elif any(_named(part, told) for part in _parts(element)):
            _fill(element)
    elif vr in ("PN", "AE", "AS", "UR", *_DATES):
        element.clear()
    elif vr == "UN" or "OB" in vr or "OW" in vr:
        return element.tag in _BULK
    elif vr not in _BYTES:
        return all(isinstance(part, int | float | bytes) for part in _values(element))  # pydicom reads "ten" as text
    return True


def _fill(element: DataElement) -> None:
    """Give an element a value that says nothing, of its own representation (action D)."""
    vr = str(element.VR)
    if vr in _DATES:
        element.value = _DATES[vr]
    elif vr == "AS":
        element.value = "000Y"
    elif vr == "UR":
        element.value = "urn:anonymized"
    elif vr in ("CS", "PN", "AE", *_TEXT):
        element.value = _DUMMY
    elif any(kind in vr for kind in _BYTES):
        element.value = b"\0\0"
    else:
        element.value = 0


def _told(dataset: Dataset) -> frozenset[str]:
    """What the object calls people by, at any depth: it may stand in text that is kept as technical."""
    found: set[str] = set()
    for element in _elements(dataset):
        if element.VR == "PN":
            found.update(word for part in _parts(element) for word in re.split(r"[\^=\s,.]+", part))
        elif element.tag in _NAMING:
            found.update(_parts(element))
    return frozenset(word.strip().casefold() for word in found if len(word.strip()) >= _LETTERS)


def _named(text: str, told: frozenset[str]) -> bool:
    """Whether a text holds a word by which the object calls someone."""
    return any(word in text.casefold() for word in told)


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    """Every element that can be decoded, at any depth."""
    for tag in list(dataset.keys()):
        element = _element(dataset, tag)
        if element is None:
            continue
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)


def _element(dataset: Dataset, tag: Any) -> DataElement | None:
    try:
        return dataset[tag]
    except Exception:  # pydicom raises whatever the bytes make its converters raise
        return None


def _value(dataset: Dataset, keyword: str) -> Any:
    """The value of an attribute, the empty string where there is none that can be decoded."""
    element = _element(dataset, tag_for_keyword(keyword)) if keyword in dataset else None
    return "" if element is None or element.value is None else element.value


def _values(element: DataElement) -> list[Any]:
    value = element.value
    return [part for part in (value if isinstance(value, MultiValue | list) else [value]) if part not in (None, "")]


def _parts(element: DataElement) -> list[str]:
    return [str(part) for part in _values(element)]


def _replace(element: DataElement, new: Any) -> None:
    value = element.value
    if value:
        element.value = [new(part) for part in value] if isinstance(value, MultiValue | list) else new(value)


@lru_cache(maxsize=1)
def _actions() -> dict[int, str]:
    """Tag to action code of Table E.1-1. Its repeating groups, curves and overlays, are taken by their groups."""
    lists = {
        "D": table.D_TAGS,
        "Z": table.Z_TAGS,
        "X": table.X_TAGS,
        "U": table.U_TAGS,
        "Z/D": table.Z_D_TAGS,
        "X/Z": table.X_Z_TAGS,
        "X/D": table.X_D_TAGS,
        "X/Z/D": table.X_Z_D_TAGS,
        "X/Z/U*": table.X_Z_U_STAR_TAGS,
    }
    return {entry[0] << 16 | entry[1]: code for code, entries in lists.items() for entry in entries if len(entry) == 2}
