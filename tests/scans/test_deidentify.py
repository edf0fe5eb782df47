"""De-identified copies: identities are planted in copies of real files, and looked for in all that is written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from medlight.errors import UsageError
from medlight.scans.deidentify import deidentify
from medlight.scans.dicom.load import load
from medlight.scans.dicom.survey import as_json, survey
from tests.data import fake_dicom as fake

TEXT = {"LO": "of Zyzzyva", "SH": "Zyzzyva", "ST": "Zyzzyva said", "LT": "Zyzzyva", "UT": "Zyzzyva", "UC": "Zyzzyva"}
TEXT |= {"PN": "Zyzzyva^Jane", "AE": "ZYZZYVA"}
SAID = re.compile(rb"zyzzyva|z\0y\0z\0z", re.IGNORECASE)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def plant(dataset, nested=False):
    """Put an identity into every text that is there, and into what may be there."""
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except Exception:
            continue
        if element.VR == "SQ":
            for item in element.value:
                plant(item, nested=True)
        elif element.VR in TEXT and not (element.keyword.startswith("Code") or element.keyword.endswith("Designator")):
            element.value = TEXT[element.VR]
    if nested:
        return
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Zyzzyva^Jane", "Zyzzyva-1", "19700102"
    dataset.ImageComments = dataset.SeriesDescription = dataset.StationName = "Zyzzyva"
    dataset.private_block(0x0099, "OF ZYZZYVA", create=True).add_new(1, "LO", "Zyzzyva")
    dataset.add_new(0x60004000, "LT", "drawn for Zyzzyva")
    request = Dataset()
    request.ScheduledProcedureStepDescription = "see Zyzzyva"
    request.add_new(0x00990010, "LO", "OF ZYZZYVA")
    request.add_new(0x00991001, "UN", b"Zyzzyva ")
    dataset.RealWorldValueMappingSequence = [request]


def planted(source, target):
    """Copy a file with an identity in it, in its preamble and in its file meta; None where it can't be written."""
    dataset = pydicom.dcmread(source, force=True)
    plant(dataset)
    dataset.preamble = b"Zyzzyva".ljust(128, b"\0")
    if not getattr(dataset, "file_meta", None):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.SourceApplicationEntityTitle = "ZYZZYVA"
    dataset.file_meta.PrivateInformationCreatorUID, dataset.file_meta.PrivateInformation = "1.2.3", b"Zyzzyva "
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        dataset.save_as(target, enforce_file_format=True)
    except Exception:
        target.unlink(missing_ok=True)


def check(copies, out):
    """No copy, by its bytes or its name, says whose it was; returns the data sets of the copies."""
    found = files(out)
    assert {copied.file for copied in copies.objects if copied.file} == {path.relative_to(out) for path in found}
    assert not [path for path in found if SAID.search(path.read_bytes()) or SAID.search(str(path).encode())]
    assert not [copied for copied in copies.objects if SAID.search(f"{copied.reason} {copied.risk}".encode())]
    return [pydicom.dcmread(path) for path in found]


def bytes_of(datasets):
    return sorted(dataset.PixelData for dataset in datasets if "PixelData" in dataset)


def test_nothing_planted_in_real_files_is_left(data_root, tmp_path):
    source = tmp_path / "Zyzzyva, Jane"
    wanted = [path for path in files(data_root / "dicom") if path.suffix in (".dcm", "") and "SOURCE" not in path.name]
    few = [path for path in wanted if "datalad" not in path.parts[-3:]][:90] + wanted[-3:]
    for number, path in enumerate(few):
        planted(path, source / f"of Zyzzyva {number % 3}" / f"zyzzyva{number}.dcm")
    before = {path: path.read_bytes() for path in files(source)}
    assert len(before) > 40
    copies = deidentify(source, tmp_path / "out")
    again = check(copies, tmp_path / "out")
    assert {path: path.read_bytes() for path in files(source)} == before
    assert len(again) == sum(copied.file is not None for copied in copies.objects) > 40
    reports = [copied for copied in copies.objects if not copied.file]
    assert {copied.reason.split(":")[0] for copied in reports} <= {"a structured report"}
    left = {str(copied.place.path) for copied in reports}
    originals = [pydicom.dcmread(path) for path in before if str(path) not in left]
    assert bytes_of(again) == bytes_of(originals)
    for dataset in again:
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert not {"SourceApplicationEntityTitle", "PrivateInformation"} & {e.keyword for e in dataset.file_meta}
        assert not [element for element in dataset.iterall() if element.tag.is_private]
        assert "PatientBirthDate" not in dataset or not dataset.PatientBirthDate


PYDICOM = """
CT_small.dcm MR_small.dcm MR_small_bigendian.dcm MR_small_implicit.dcm MR_small_RLE.dcm JPEG2000.dcm image_dfl.dcm
SC_rgb_jpeg_dcmtk.dcm examples_palette.dcm examples_overlay.dcm liver_1frame.dcm rtdose_1frame.dcm rtplan.dcm
rtstruct.dcm waveform_ecg.dcm nested_priv_SQ.dcm priv_SQ.dcm no_meta.dcm ExplVR_BigEndNoMeta.dcm
reportsi.dcm test-SR.dcm UN_sequence.dcm
"""


def test_every_kind_of_object_and_encoding(tmp_path):
    source = tmp_path / "in"
    for name in PYDICOM.split():
        planted(get_testdata_file(name, download=False), source / name)
        shutil.copy(get_testdata_file(name, download=False), source / f"as it was {name}")
    copies = deidentify(source, tmp_path / "out")
    again = check(copies, tmp_path / "out")
    left = {copied.place.path.name for copied in copies.objects if not copied.file}
    reports, fragments = {"reportsi.dcm", "test-SR.dcm"}, {"nested_priv_SQ.dcm", "priv_SQ.dcm", "UN_sequence.dcm"}
    assert {name.removeprefix("as it was ") for name in left} <= reports | fragments | {"no_meta.dcm"}
    assert {dataset.SOPClassUID.name for dataset in again} >= {
        "CT Image Storage", "MR Image Storage", "RT Structure Set Storage", "RT Plan Storage", "Segmentation Storage",
        "12-lead ECG Waveform Storage", "RT Dose Storage",
    }  # fmt: skip
    for dataset in again:
        if "PixelData" in dataset and not dataset.file_meta.TransferSyntaxUID.is_compressed:
            assert dataset.pixel_array.size
    structures = next(d for d in again if d.Modality == "RTSTRUCT")
    assert [region.ROIName for region in structures.StructureSetROISequence][:2] == ["ROI 1", "ROI 2"]
    assert len(structures.ROIContourSequence[0].ContourSequence[0].ContourData) > 3


def test_references_still_lead_to_their_images(data_root, tmp_path):
    folder = data_root / "dicom" / "dcmqi"
    copies = deidentify(folder, tmp_path / "out")
    again = check(copies, tmp_path / "out")
    images = {d.SOPInstanceUID: d for d in again if d.Modality in ("CT", "MR", "PT")}
    segmentations = [d for d in again if d.Modality == "SEG"]
    assert segmentations
    resolved = 0
    for segmentation in segmentations:
        for element in segmentation.iterall():
            resolved += element.keyword == "ReferencedSOPInstanceUID" and element.value in images
    assert resolved
    series = {d.SeriesInstanceUID for d in images.values()}
    told = {d.ReferencedSeriesSequence[0].SeriesInstanceUID for d in segmentations if "ReferencedSeriesSequence" in d}
    assert told & series


def test_copies_are_the_same_volumes(data_root, tmp_path):
    for name in ("anatomical/001", "datalad_structural/dicoms", "failing/gantrytilting"):
        source = data_root / "dicom" / name
        deidentify(source, tmp_path / name)
        (before,), (after,) = (survey([folder]).stacks for folder in (source, tmp_path / name))
        wanted, found = as_json(before), as_json(after)
        assert wanted.pop("id") != found.pop("id")
        assert wanted.pop("series_uid") != found.pop("series_uid")
        assert wanted == found
        if found["status"] == "ok":
            assert np.array_equal(load(before).array, load(after).array)


def test_workers_give_the_same_names(tmp_path):
    fake.write(fake.series(fake.Grid(shape=(8, 9, 40))), tmp_path / "in")
    copies = deidentify(tmp_path / "in", tmp_path / "out", workers=2)
    again = check(copies, tmp_path / "out")
    assert len(again) == 40
    assert len({d.SeriesInstanceUID for d in again}) == len({d.PatientID for d in again}) == 1
    assert len({d.SOPInstanceUID for d in again}) == 40
    assert len({path.parent for path in files(tmp_path / "out")}) == 1
    stored = sorted(float(d.ImagePositionPatient[2]) for d in again)
    assert np.allclose(np.diff(stored), 2.5)
    second = deidentify(tmp_path / "in", tmp_path / "other")
    assert not {d.SOPInstanceUID for d in check(second, tmp_path / "other")} & {d.SOPInstanceUID for d in again}


def test_the_same_object_twice_is_two_files(tmp_path):
    one = fake.series()[0]
    for name in ("a", "b"):
        fake.save(one, tmp_path / "in" / name)
    copies = deidentify(tmp_path / "in", tmp_path / "out")
    assert len({copied.file for copied in copies.objects}) == 2


def test_a_zip_and_a_dicomdir(tmp_path):
    fake.write(fake.series(), tmp_path / "Zyzzyva")
    archive = fake.zipped(tmp_path / "Zyzzyva", tmp_path / "Zyzzyva.zip")
    assert len(check(deidentify(archive, tmp_path / "unzipped"), tmp_path / "unzipped")) == 6
    index = fake.with_dicomdir(fake.series(), tmp_path / "disc")
    assert len(check(deidentify(index, tmp_path / "one"), tmp_path / "one")) == 6
    copies = deidentify(index.parent, tmp_path / "two")
    assert len(check(copies, tmp_path / "two")) == 6
    assert all(copied.file for copied in copies.objects)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"BurnedInAnnotation": "YES"}, "text is burned"),
        ({"RecognizableVisualFeatures": "YES"}, "face"),
        ({"Modality": "US"}, "may be burned"),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, ""),
        ({"SOPClassUID": fake.SOP_CLASSES["OT"]}, "may be burned"),
        ({"ImageType": ["DERIVED", "PRIMARY", "LABEL"]}, "label"),
        ({}, ""),
    ],
)
def test_what_the_pixels_may_show_is_said(tmp_path, tags, said):
    fake.save(fake.plane(fake.Grid(), 0, **tags), tmp_path / "in" / "a")
    (copied,) = deidentify(tmp_path / "in", tmp_path / "out").objects
    assert copied.file
    assert said in copied.risk
    assert bool(said) == bool(copied.risk)


def test_an_overlay_in_the_pixels_is_said(tmp_path):
    image = fake.plane(fake.Grid(), 0)
    image.add_new(0x60000010, "US", 10)
    image.add_new(0x60000102, "US", 12)
    fake.save(image, tmp_path / "in" / "a")
    (copied,) = deidentify(tmp_path / "in", tmp_path / "out").objects
    assert "overlay" in copied.risk


def test_what_can_not_be_cleaned_is_left_out(tmp_path):
    pdf = fake.instance(None, "OT", EncapsulatedDocument=b"%PDF Zyzzyva", SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1")
    fake.save(pdf, tmp_path / "in" / "a")
    fake.save(fake.report(), tmp_path / "in" / "b")
    fake.save(fake.instance(None, SOPClassUID="1.3.12.2.1107.5.9.1"), tmp_path / "in" / "c")
    (tmp_path / "in" / "d").write_bytes(b"\0" * 128 + b"DICM" + b"Zyzzyva" * 9)
    (tmp_path / "in" / "e.txt").write_text("no DICOM")
    copies = deidentify(tmp_path / "in", tmp_path / "out")
    reasons = [copied.reason for copied in copies.objects]
    assert not files(tmp_path / "out")
    assert not check(copies, tmp_path / "out")
    assert [any(word in reason for reason in reasons) for word in ("document", "report", "vendor")] == [True] * 3
    assert copies.passed_over == 1
    assert len(reasons) == 4


def test_the_input_is_never_written_to(tmp_path):
    fake.write(fake.series(), tmp_path / "in")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    for out in ("in", "in/out", "link/out", "full", "full/a"):
        with pytest.raises(UsageError, match=r"OUT|new one"):
            deidentify(tmp_path / "in", tmp_path / out)
    with pytest.raises(UsageError, match="no such"):
        deidentify(tmp_path / "absent", tmp_path / "out")
    assert len(files(tmp_path / "in")) == 6
    assert (tmp_path / "full" / "a").read_text() == "mine"


def test_dates_are_gone(tmp_path):
    fake.write(fake.by_time(2, "time"), tmp_path / "in")
    for dataset in check(deidentify(tmp_path / "in", tmp_path / "out"), tmp_path / "out"):
        dates = {str(e.value) for e in dataset.iterall() if e.VR in ("DA", "TM", "DT") and e.value}
        assert dates <= {"19000101", "19000101000000", "000000"}
    assert not [path for path in files(tmp_path / "out") if re.search(rb"20200102|101112", path.read_bytes())]


def test_places(tmp_path: Path):
    """Copies lie by subject and series."""
    for n, patient in enumerate(("a", "b")):
        fake.write(fake.series(PatientID=patient, series=f"s{n}"), tmp_path / "in" / patient)
    out = tmp_path / "out"
    deidentify(tmp_path / "in", out)
    assert len(list(out.iterdir())) == 2
    assert all(re.fullmatch(r"P\w{12}/ct-\w{10}/\w{16}\.dcm", str(path.relative_to(out))) for path in files(out))
