"""The confidentiality profile on one data set: every attribute of the table, every text attribute of the standard."""

from __future__ import annotations

import io
import re

import pydicom
import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from medlight.scans.dicom.confidential import Pseudonyms, clean
from tests.data import fake_dicom as fake

NAMES = Pseudonyms(b"secret")
TEXT = {"PN": "Zyzzyva^Jane", "LO": "of Zyzzyva", "SH": "Zyzzyva", "ST": "Zyzzyva said", "LT": "to Zyzzyva\r\nwritten"}
TEXT |= {"UT": "Zyzzyva", "UC": "Zyzzyva", "AE": "ZYZZYVA", "UR": "http://zyzzyva.example", "CS": "ZYZZYVA"}
TEXT |= {"DA": "19700102", "DT": "19700102101112", "TM": "101112.1314", "AS": "097Y", "UN": b"Zyzzyva "}
SAID = re.compile(rb"zyzzyva|jane|19700102|101112|097Y", re.IGNORECASE)


def everything(vrs):
    """One element for each attribute of the standard with one of these representations, with an identity in it."""
    made = Dataset()
    for tag, (vr, *_) in DicomDictionary.items():
        if vr in vrs and Tag(tag).group >= 8 and keyword_for_tag(tag):
            made.add_new(tag, vr, TEXT[vr])
    for name in ("SpecificCharacterSet", "PhotometricInterpretation", "PresentationLUTShape", "SegmentationType"):
        made.pop(name, None)  # what can't say anything else
    made.pop("DimensionOrganizationType", None)
    return made


def written(dataset):
    """The bytes of a data set as a file, and what is read from them."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue(), pydicom.dcmread(io.BytesIO(stream.getvalue()))


@pytest.fixture
def image():
    return fake.instance(fake.pixels(0, (8, 9)), "CT")


def read_again(dataset):
    return written(dataset)[1]


@pytest.mark.parametrize("vrs", [tuple(TEXT), ("PN",)], ids=["all", "names"])
def test_an_identity_in_every_text_attribute_is_gone_at_every_depth(image, vrs):
    image.update(everything(vrs))
    deep = everything(vrs)
    deep.RealWorldValueMappingSequence = [everything(vrs)]  # no sequence of the table
    image.SharedFunctionalGroupsSequence = [deep]
    image.private_block(0x0009, "ZYZZYVA", create=True).add_new(0x01, "LO", "Zyzzyva")
    image.add_new(0x60004000, "LT", "Zyzzyva drew this")
    image.add_new(0x60020022, "LO", "of Zyzzyva")
    image.add_new(0x50001001, "LO", "of Zyzzyva")
    image.SOPClassUID, image.Modality = fake.SOP_CLASSES["CT"], "CT"
    assert SAID.search(written(image)[0])
    image = read_again(image)
    clean(image, NAMES)
    image.file_meta.pop("PrivateInformationCreatorUID", None)
    content, again = written(image)
    assert not SAID.search(content), {
        e.keyword for e in again.iterall() if SAID.search(str(e.value).encode(errors="replace"))
    }
    assert (again.pixel_array == fake.pixels(0, (8, 9))).all()


def test_text_that_stays_is_technical():
    """Where the word is no name that the object gives anyone, only technical attributes keep it."""
    image = everything(("LO", "SH", "ST", "LT", "UT", "UC"))
    for keyword in ("PatientID", "OtherPatientIDs", "InstitutionName", "InstitutionAddress", "AccessionNumber"):
        setattr(image, keyword, "another")
    image.PatientName, image.MedicalRecordLocator = "Other", "another"
    clean(image, NAMES)
    kept = {element.keyword for element in image if "zyzzyva" in str(element.value).lower()}
    assert {"Manufacturer", "ConvolutionKernel", "CodeMeaning", "SegmentLabel"} <= kept
    assert not kept & {keyword_for_tag(tag) for tag in table.ALL_TAGS if len(tag) == 2}
    assert not [name for name in kept if re.search("Comment|Description|Station|Institution|Serial|Date", name)]
    assert len(kept) < 40


def dummy(tag):
    """An element for a tag of the table, with a value of its representation."""
    vr = pydicom.datadict.dictionary_VR(tag)
    if vr == "SQ":
        item = Dataset()
        item.PatientName, item.ReferencedSOPInstanceUID, item.CodeMeaning = "Zyzzyva", "1.2.3", "meaning"
        return vr, Sequence([item])
    values = {"UI": "1.2.3", "DS": "12.5", "IS": "12", "US": 12, "FD": 12.5, "FL": 12.5, "UL": 12, "SL": 12, "SS": 12}
    return vr, TEXT.get(vr, values.get(vr, b"ZY"))


CODES = {code: getattr(table, f"{code.replace('/', '_').replace('*', '_STAR')}_TAGS") for code in (
    "D", "Z", "X", "U", "Z/D", "X/Z", "X/D", "X/Z/D", "X/Z/U*")}  # fmt: skip


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
def test_each_attribute_of_the_table_gets_its_action(code, nested):
    before, tags = Dataset(), []
    for entry in CODES[code]:
        tag = Tag(entry[0], entry[1])
        if len(entry) == 2 and tag.group >= 8 and pydicom.datadict.dictionary_has_tag(tag):
            before.add_new(tag, *dummy(tag))
            tags.append(tag)
    assert tags
    whole = Dataset()
    whole.ReferencedSeriesSequence = [before] if nested else []
    after = whole if nested else before
    clean(after, NAMES)
    found = after.ReferencedSeriesSequence[0] if nested else after
    for tag in tags:
        value = found[tag].value if tag in found else None
        if tag in (0x00100010, 0x00100020) and not nested:
            assert re.fullmatch("P[0-9a-f]{12}|P0", str(value))
        elif code == "X":
            assert tag not in found, tag
        elif tag == 0x30060026:
            assert value == ""  # a region's name; it is a number where there is one
        elif value is None:
            assert "X" in code or "Z" in code, tag
        elif code in ("Z", "X/Z"):
            assert not value, tag
        elif pydicom.datadict.dictionary_VR(tag) == "SQ":
            assert all(item.ReferencedSOPInstanceUID.startswith("2.25.") for item in value)
            assert all("PatientName" not in item or item.PatientName != "Zyzzyva" for item in value)
        elif pydicom.datadict.dictionary_VR(tag) == "UI":
            assert value.startswith("2.25.")
        else:
            assert value not in (dummy(tag)[1], "", None), tag


def test_uids_are_replaced_alike_and_those_of_the_standard_stay(image):
    image.ReferencedSeriesSequence = [Dataset()]
    inner = image.ReferencedSeriesSequence[0]
    inner.SeriesInstanceUID = image.SeriesInstanceUID
    inner.ReferencedSOPSequence = [Dataset()]
    inner.ReferencedSOPSequence[0].ReferencedSOPClassUID = image.SOPClassUID
    inner.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = image.SOPInstanceUID
    image.IrradiationEventUID = ["1.2.3", "1.2.4"]
    image.CodingSchemeIdentificationSequence = [Dataset()]
    image.CodingSchemeIdentificationSequence[0].CodingSchemeUID = "2.16.840.1.113883.6.96"
    old = image.SOPInstanceUID, image.SeriesInstanceUID
    other = fake.instance(None, "CT", number=2)
    for one in (image, other):
        clean(one, NAMES)
    assert (image.SOPInstanceUID, image.SeriesInstanceUID) == tuple(map(NAMES.uid, old))
    assert image.SOPInstanceUID not in old
    assert other.SeriesInstanceUID == image.SeriesInstanceUID == inner.SeriesInstanceUID
    assert other.SOPInstanceUID != image.SOPInstanceUID
    assert inner.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert inner.ReferencedSOPSequence[0].ReferencedSOPClassUID == image.SOPClassUID == fake.SOP_CLASSES["CT"]
    assert list(image.IrradiationEventUID) == [NAMES.uid("1.2.3"), NAMES.uid("1.2.4")]
    assert image.CodingSchemeIdentificationSequence[0].CodingSchemeUID == "2.16.840.1.113883.6.96"
    assert all(len(NAMES.uid(str(n))) <= 64 and pydicom.uid.UID(NAMES.uid(str(n))).is_valid for n in range(100))
    assert Pseudonyms(b"other").uid(old[0]) != NAMES.uid(old[0])


def test_it_says_that_it_was_done_and_subjects_can_be_told_apart(image):
    same, other = fake.instance(None, number=3), fake.instance(None, number=4, PatientID="someone else")
    nobody = fake.instance(None, PatientID=None, PatientName=None)
    for one in (image, same, other, nobody):
        clean(one, NAMES)
    assert image.PatientIdentityRemoved == "YES"
    assert image.LongitudinalTemporalInformationModified == "REMOVED"
    assert "2026c" in image.DeidentificationMethod
    assert len(image.DeidentificationMethod) <= 64
    code = image.DeidentificationMethodCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("113100", "DCM")
    assert image.PatientID == str(image.PatientName) == same.PatientID
    assert len({image.PatientID, other.PatientID, nobody.PatientID}) == 3


def test_regions_keep_a_number_for_a_name():
    structures = fake.instance(None, "RTSTRUCT")
    regions = []
    for number, name in ((1, "Zyzzyva's liver"), (2, "spleen")):
        region = Dataset()
        region.ROINumber, region.ROIName = number, name
        regions.append(region)
    structures.StructureSetROISequence = regions
    clean(structures, NAMES)
    assert [region.ROIName for region in structures.StructureSetROISequence] == ["ROI 1", "ROI 2"]


def test_what_can_not_be_decoded_goes(image):
    content, _ = written(image)
    broken = pydicom.dcmread(io.BytesIO(content))
    broken._dict[Tag(0x00180050)] = pydicom.dataelem.RawDataElement(
        Tag(0x00180050), "DS", 8, b"Zyzzyva ", 0, False, True, True
    )
    clean(broken, NAMES)
    assert "SliceThickness" not in broken


def test_code_strings_that_are_none_go_and_good_ones_stay(image):
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.BodyPartExamined = "CHEST"
    image.add_new("ScanOptions", "CS", "by Jane")
    image.ScanningSequence = "ZYZZYVA"
    clean(image, NAMES)
    assert list(image.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert image.BodyPartExamined == "CHEST"
    assert not image.ScanOptions
    assert not image.ScanningSequence
