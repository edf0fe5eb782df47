"""Cases that are DICOM series: listed, named by their content, mended where asked for, prepared as any others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from medlight.errors import CaseError, UsageError
from medlight.prepare import Case, ImageFolders, Label, Manifest, Preparation, Store
from medlight.prepare.digests import content_digest, file_digests
from medlight.prepare.prepared import scanned
from medlight.scans import Volume, read, write_nifti
from medlight.scans.dicom_seg import write_seg
from tests.data import fake, fake_dicom

GRID = fake_dicom.Grid(shape=(14, 12, 10))


def label_of(volume: Volume, value: int = 1) -> Volume:
    array = np.zeros((1, *volume.shape), np.uint8)
    array[0, 3:8, 4:9, 2:6] = value
    return Volume(array, volume.affine)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two series in folders called by their patients, one of them some levels down, and their label maps."""
    for number, name in enumerate(("Doe^Jane", "Roe^Richard")):
        folder = tmp_path / "images" / name / ("study/series" if number else "")
        fake_dicom.write(fake_dicom.series(GRID, series=name, channel=number), folder)
        write_nifti(label_of(read(folder)), tmp_path / "labels" / f"{name}.nii.gz")
    return tmp_path


def source(root: Path, **options) -> ImageFolders:
    return ImageFolders(str(root / "images"), str(root / "labels"), **options)


def test_sub_folders_are_scans(root: Path) -> None:
    (root / "images" / "notes").mkdir()
    (root / "images" / "notes" / "read me.txt").write_text("x")
    found = source(root).cases()
    assert [case.id for case in found.cases] == ["Doe^Jane", "Roe^Richard"]
    assert not found.bad
    done = Store(root / "store").prepare(found, Preparation()).cases
    for number, case in enumerate(done):
        array, affine = fake_dicom.truth(GRID)
        turned = read(next((root / "images").glob("*" if number == 0 else "*/study/series")))
        np.testing.assert_allclose(turned.affine, affine, atol=1e-6)
        expected = np.sort((array + 4096 * number).ravel())
        np.testing.assert_array_equal(np.sort(case.image().ravel()), expected)
        assert case.label().sum() == label_of(turned).array.sum()
        # the labelled voxels are the same ones
        inside = turned.array[label_of(turned).array > 0]
        np.testing.assert_array_equal(np.sort(case.image()[0][case.label() > 0]), np.sort(inside))


def test_ids_are_digests_of_the_content_wherever_it_lies(root: Path, tmp_path: Path) -> None:
    first = Store(root / "store").prepare(source(root).cases(), Preparation())
    ids = [case.case.id for case in first.cases]
    assert all(name.startswith("case-") and len(name) == 15 for name in ids)
    moved = tmp_path / "elsewhere"
    for kind in ("images", "labels"):
        shutil.copytree(root / kind, moved / kind)
    for number, folder in enumerate(sorted((moved / "images").iterdir())):
        label = moved / "labels" / f"{folder.name}.nii.gz"
        label.rename(label.with_name(f"other{number}.nii.gz"))
        folder = folder.rename(folder.with_name(f"other{number}"))
        for place, file in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
            file.rename(folder / f"{9 - place}.dcm")
        (folder / ".DS_Store").write_bytes(b"left by a Mac")
        (folder / "._x.dcm").write_bytes(b"left by a Mac")
    again = Store(root / "store").prepare(source(moved).cases(), Preparation())
    assert [case.case.id for case in again.cases] == ids
    assert [case.digest for case in again.cases] == [case.digest for case in first.cases]
    assert (again.computed, again.reused) == (0, 2)
    file = next(p for p in (moved / "images" / "other0").iterdir() if p.suffix == ".dcm" and not p.name.startswith("."))
    file.write_bytes(file.read_bytes()[:-2] + b"\x07\x00")
    changed = Store(root / "store").prepare(source(moved).cases(), Preparation())
    assert changed.computed == 1
    assert changed.cases[0].case.id != ids[0]
    assert changed.cases[1].case.id == ids[1]


def test_two_copies_of_one_series_are_two_cases(root: Path) -> None:
    shutil.copytree(root / "images" / "Doe^Jane", root / "images" / "Again")
    shutil.copy(root / "labels" / "Doe^Jane.nii.gz", root / "labels" / "Again.nii.gz")
    done = Store(root / "store").prepare(source(root).cases(), Preparation())
    ids = [case.case.id for case in done.cases]
    assert ids[1] == f"{ids[0]}+1"
    assert (done.computed, done.reused) == (2, 1)


def test_manifest_rows_may_be_folders_and_zips(root: Path) -> None:
    fake_dicom.zipped(root / "images" / "Roe^Richard", root / "images" / "zipped.zip")
    rows = [
        {"id": "a", "image": "images/Doe^Jane", "label": "labels/Doe^Jane.nii.gz"},
        {"id": "", "image": "images/zipped.zip", "label": "labels/Roe^Richard.nii.gz"},
        {"id": "", "image": "images/Roe^Richard", "label": "labels/Roe^Richard.nii.gz"},
        {"id": "", "image": "labels/Roe^Richard.nii.gz", "label": "labels/Roe^Richard.nii.gz"},
        {"id": "gone", "image": "images/Nobody", "label": "labels/Roe^Richard.nii.gz"},
    ]
    listed = Manifest(str(fake.manifest(root / "cases.csv", rows))).cases()
    assert [case.id for case in listed.cases] == ["a", "images_zipped.zip", "images_Roe^Richard"]
    assert [bad.reason.split(": ", 1)[1].split(";")[0] for bad in listed.bad] == [
        "has no id",
        f"{root / 'images/Nobody'} is not there",
    ]
    done = Store(root / "store").prepare(listed, Preparation(), on_bad_case="skip").cases
    assert done[0].case.id == "a"
    assert [case.case.id[:5] for case in done[1:]] == ["case-", "case-"]
    np.testing.assert_array_equal(done[1].image(), done[2].image())


def test_loose_files_are_scans_only_where_they_are_no_slices(tmp_path: Path) -> None:
    fake_dicom.write(fake_dicom.series(GRID), tmp_path / "series")
    with pytest.raises(UsageError, match="holds the slices of one series; give the folder above it"):
        ImageFolders(str(tmp_path / "series"), unlabelled=True).cases()
    for number in range(3):
        made = fake_dicom.radiograph(SeriesInstanceUID=fake_dicom.uid(number))
        fake_dicom.save(made, tmp_path / "chests" / f"{number}.dcm")
    found = ImageFolders(str(tmp_path / "chests"), unlabelled=True).cases()
    assert [case.id for case in found.cases] == ["0", "1", "2"]
    done = Store(tmp_path / "store").prepare(found, Preparation()).cases
    assert {case.shape[2] for case in done} == {1}
    assert {case.case.id[:5] for case in done} == {"case-"}


def test_pictures_are_scans_where_nothing_else_is(tmp_path: Path) -> None:
    from PIL import Image

    for folder, high in (("images", 255), ("labels", 2)):
        (tmp_path / folder).mkdir()
        for number in range(2):
            values = np.random.default_rng(number).integers(0, high, (9, 7), np.uint8, endpoint=True)
            Image.fromarray(values).save(tmp_path / folder / f"{number}.png")
    found = source(tmp_path).cases()
    assert [case.id for case in found.cases] == ["0", "1"]
    done = Store(tmp_path / "store").prepare(found, Preparation()).cases
    assert done[0].shape == (7, 9, 1)
    assert done[0].label().shape == (7, 9, 1)
    write_nifti(Volume(np.ones((1, 4, 4, 4), np.float32), np.eye(4)), tmp_path / "images" / "0.nii.gz")
    assert [case.id for case in ImageFolders(str(tmp_path / "images"), unlabelled=True).cases().cases] == ["0"]


def test_a_series_with_a_gap_is_refused_unless_it_is_mended(tmp_path: Path) -> None:
    fake_dicom.write(fake_dicom.without(fake_dicom.series(GRID), 4), tmp_path / "images" / "x")
    cases = ImageFolders(str(tmp_path / "images"), unlabelled=True).cases()
    store = Store(tmp_path / "store")
    with pytest.raises(CaseError, match="gap"):
        store.prepare(cases, Preparation())
    done = store.prepare(cases, Preparation(on={"gap": "interpolate"}))
    (case,) = done.cases
    assert case.shape == (12, 14, 10)
    assert len(case.mended) == 1
    assert "gap" in case.mended[0]
    again = store.prepare(cases, Preparation(on={"gap": "interpolate", "tilt": "error"}))
    assert (again.computed, again.reused) == (0, 1)
    assert again.cases[0].mended == case.mended


def test_what_was_prepared_before_there_were_mends_is_found_again(tmp_path: Path) -> None:
    """The key as it was when a preparation had three arguments."""
    fake.folders(tmp_path, 1, (6, 6, 6))
    (case,) = Store(tmp_path / "store").prepare(source(tmp_path).cases(), Preparation([1, 1, 2])).cases

    def digest(value: object) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    files = [hashlib.sha256((tmp_path / k / "case_00.nii.gz").read_bytes()).hexdigest() for k in ("images", "labels")]
    content = digest([[["image", files[0]]], files[1]])
    spec = {"spacing": [1.0, 1.0, 2.0], "orientation": "RAS", "anisotropy_threshold": 3.0}
    assert case.digest == content
    assert case.key == digest([1, content, spec])
    assert Preparation([1, 1, 2]).to_dict() == spec
    assert Preparation(on={"gap": "error"}).to_dict() == Preparation().to_dict()
    assert Preparation(**Preparation(on={"gap": "split"}, frames="clip").to_dict()).mends.gap == "split"
    with pytest.raises(UsageError, match="did you mean 'interpolate'"):
        Preparation(on={"gap": "interpolat"})


def test_labels_may_be_segmentations(root: Path) -> None:
    nifti = Store(root / "store").prepare(source(root, label_names={1: "liver"}).cases(), Preparation([1.0, 1.0, 2.0]))
    (root / "segs").mkdir()
    for number, image in enumerate(sorted((root / "images").iterdir())):
        mask = label_of(read(image))
        out = root / "segs" / (f"{image.name}.dcm" if number else f"{image.name}/seg.dcm")
        out.parent.mkdir(exist_ok=True)
        write_seg(mask, image, out, (Label(1, "liver"),))

    def prepared(**names):
        cases = ImageFolders(str(root / "images"), str(root / "segs"), label_names=names["names"]).cases()
        return Store(root / "store").prepare(cases, Preparation([1.0, 1.0, 2.0]))

    seg = prepared(names={1: "liver"})
    for one, other in zip(nifti.cases, seg.cases, strict=True):
        np.testing.assert_array_equal(one.label(), other.label())
        assert one.case.id == other.case.id, "the name is the image's alone"
    assert seg.computed == 2
    assert prepared(names={1: "liver"}).computed == 0
    other = prepared(names={5: "Liver"})  # found by its name
    assert other.computed == 2
    assert other.cases[0].values == (0, 5)
    assert [label.value for label in prepared(names=None).labels] == [0, 1]


def test_a_folder_s_digest_is_its_files_digests(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x").write_bytes(b"one")
    (tmp_path / "a" / "b" / "y").write_bytes(b"two")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    parts = sorted(hashlib.sha256(content).hexdigest() for content in (b"one", b"two"))
    expected = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    assert content_digest(tmp_path / "a") == expected
    found = file_digests([tmp_path / "a", tmp_path / "gone", tmp_path / "a" / "x"], tmp_path / "memory.sqlite")
    assert found == {tmp_path / "a": expected, tmp_path / "a" / "x": hashlib.sha256(b"one").hexdigest()}


def test_folder_digests_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dicom.write(fake_dicom.series(GRID), tmp_path / "series")
    for file in (tmp_path / "series").iterdir():
        os.utime(file, (1e9, 1e9))
    first = file_digests([tmp_path / "series"], tmp_path / "memory.sqlite")

    def never(_path: Path) -> str:
        raise AssertionError("read again")

    monkeypatch.setattr("medlight.prepare.digests._sha256", never)
    assert file_digests([tmp_path / "series"], tmp_path / "memory.sqlite") == first
    assert b"series" not in (tmp_path / "memory.sqlite").read_bytes()


@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_a_header_s_data_file_counts(tmp_path: Path, suffix: str) -> None:
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    sitk.WriteImage(image, str(tmp_path / f"x.{suffix}"))
    (data,) = [file for file in tmp_path.iterdir() if file.suffix != f".{suffix}"]
    before = content_digest(tmp_path / f"x.{suffix}")
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    assert content_digest(tmp_path / f"x.{suffix}") != before


def test_case_of_one_file(tmp_path: Path) -> None:
    """An enhanced multi-frame object is a file and a volume."""
    fake_dicom.save(fake_dicom.enhanced(GRID), tmp_path / "x.dcm")
    done = Preparation().prepare(Case("x", {"image": tmp_path / "x.dcm"}))
    assert sorted(done.image.shape) == sorted((1, 12, 14, 10))


@pytest.mark.parametrize(
    "name", ["anatomical/001", "generic/anatomical/002_non_isotropic", "generic/compressed_j2k/001"]
)
def test_a_real_series_is_prepared_as_its_nifti(data_root: Path, name: str) -> None:
    series = data_root / "dicom" / name
    one = Preparation([2.0, 2.0, 3.0]).prepare(Case("dicom", {"image": series}))
    truth = series.with_name(f"{series.name}_ground_truth.nii.gz")
    other = Preparation([2.0, 2.0, 3.0]).prepare(Case("nifti", {"image": truth}))
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-3)
    np.testing.assert_allclose(one.image, other.image, atol=1e-3 * float(one.image.std()))


def test_real_contours_are_labels(data_root: Path, tmp_path: Path) -> None:
    """Two slices of a CT phantom, and the structures of its plan."""
    folder = data_root / "dicom" / "rt_utils" / "mock_data"
    for name in ("ct_1.dcm", "ct_2.dcm"):
        (tmp_path / "ct").mkdir(exist_ok=True)
        shutil.copy(folder / name, tmp_path / "ct" / name)
    rows = [{"id": "phantom", "image": "ct", "label": str(folder / "rt.dcm")}]
    listed = Manifest(str(fake.manifest(tmp_path / "cases.csv", rows))).cases()
    done = Store(tmp_path / "store").prepare(listed, Preparation())
    (case,) = done.cases
    assert case.has_label
    assert len(done.labels) > 1
    assert all(case.counts[value] for value in case.values if value)


def test_a_signature_tells_modality_and_voxel_sizes_before_resampling(root: Path) -> None:
    """As they were scanned, along the axes of the preparation's orientation."""
    flat = fake_dicom.Grid(shape=(14, 12, 10), spacing=(2.0, 0.5), step=4.0)
    fake_dicom.write(fake_dicom.series(flat, series="flat", modality="MR"), root / "images" / "flat")
    write_nifti(label_of(read(root / "images" / "flat")), root / "labels" / "flat.nii.gz")
    preparation = Preparation(spacing=[3.0, 3.0, 3.0], orientation="SAR")
    cases = Store(root / "store").prepare(source(root).cases(), preparation).cases
    again = Store(root / "store").prepare(source(root).cases(), preparation).cases
    for found in (scanned(cases, preparation), scanned(again, preparation)):
        assert found == {"modalities": ["CT", "MR"], "spacing_range": [[2.5, 1.5, 0.5], [4.0, 2.0, 0.75]]}
    write_nifti(read(root / "images" / "flat"), root / "nifti" / "flat.nii.gz")
    alone = Store(root / "store").prepare([Case("flat", {"image": root / "nifti" / "flat.nii.gz"})], preparation)
    assert scanned(alone.cases, preparation)["modalities"] == []
    affine = np.diag([1.0, 2.0, 5.0, 1.0])  # RAS
    affine[:3, 3] = read(root / "nifti" / "flat.nii.gz").affine[:3, 3]
    write_nifti(Volume(np.zeros((1, 7, 6, 4), np.int16), affine), root / "nifti" / "thick.nii.gz")
    both = Case("both", {"image": root / "nifti" / "flat.nii.gz", "other": root / "nifti" / "thick.nii.gz"})
    for _ in range(2):  # prepared, and from the store
        (found,) = Store(root / "store").prepare([both], preparation).cases
        assert scanned([found], preparation)["spacing_ranges"] == {"other": [[5.0, 2.0, 1.0]] * 2}
