"""Sources: strict pairs, and one line for each that is not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medlight.errors import MedlightError, UsageError
from medlight.prepare import ArrayItem, CaseSource, Decathlon, ImageFolders, Label, MedMNIST
from tests.data import fake


def source(root, **options):
    return ImageFolders(str(root / "images"), str(root / "labels"), **options)


def test_folders_pair_by_name(tmp_path):
    fake.folders(tmp_path, 3, (6, 6, 6))
    (tmp_path / "images" / "._case_00.nii.gz").write_bytes(b"left by a Mac")
    (tmp_path / "images" / "notes.txt").write_text("x")
    found = source(tmp_path, label_names={1: "liver", "2": {"name": "tumour", "colour": "#ff0000"}}).cases()
    assert [case.id for case in found.cases] == ["case_00", "case_01", "case_02"]
    assert found.cases[0].label == tmp_path / "labels" / "case_00.nii.gz"
    assert found.labels == (Label(0, "background"), Label(1, "liver"), Label(2, "tumour", "#ff0000"))
    assert not found.bad
    assert isinstance(source(tmp_path), CaseSource)


def test_what_has_no_partner_is_listed(tmp_path, monkeypatch):
    fake.folders(tmp_path, 4, (6, 6, 6))
    fake.spoil(tmp_path, "case_01", "no_image")
    fake.spoil(tmp_path, "case_02", "no_label")
    monkeypatch.setenv("MEDLIGHT_DATA", str(tmp_path))
    found = ImageFolders("images", "labels").cases()
    assert [case.id for case in found.cases] == ["case_00", "case_03"]
    reasons = {bad.id: bad.reason for bad in found.bad}
    assert reasons["case_01"].startswith("labels/case_01.nii.gz: a label with no image images/case_01.nii.gz; add the")
    assert reasons["case_02"].startswith("images/case_02.nii.gz: an image with no label labels/case_02.nii.gz; add the")
    assert all("on_bad_case: skip" in reason for reason in reasons.values())


def test_unlabelled_cases_where_asked_for(tmp_path):
    fake.folders(tmp_path, 3, (6, 6, 6))
    fake.spoil(tmp_path, "case_02", "no_label")
    found = source(tmp_path, unlabelled=True).cases()
    assert [case.label is None for case in found.cases] == [False, False, True]
    alone = ImageFolders(str(tmp_path / "images"), unlabelled=True).cases()
    assert [case.label for case in alone.cases] == [None] * 3
    with pytest.raises(UsageError, match="unlabelled: true"):
        ImageFolders(str(tmp_path / "images"))


def test_two_files_for_one_id(tmp_path):
    fake.folders(tmp_path, 2, (6, 6, 6))
    (tmp_path / "images" / "case_00.nii").write_bytes(b"x")
    found = source(tmp_path).cases()
    assert [case.id for case in found.cases] == ["case_01"]
    assert "two files for the id 'case_00'" in found.bad[0].reason


def test_folders_that_are_not_there_or_hold_nothing(tmp_path):
    fake.folders(tmp_path, 1, (6, 6, 6))
    with pytest.raises(UsageError, match="did you mean 'images'"):
        ImageFolders(str(tmp_path / "image"), str(tmp_path / "labels")).cases()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no scan here: NIfTI"):
        ImageFolders(str(tmp_path / "empty"), str(tmp_path / "labels")).cases()
    with pytest.raises(UsageError, match="is a file"):
        ImageFolders(str(tmp_path / "images" / "case_00.nii.gz"), str(tmp_path / "labels")).cases()


@pytest.mark.parametrize("names", [{"liver": 1}, {-1: "x"}, {1: "same", 2: "same"}])
def test_wrong_label_names(tmp_path, names):
    with pytest.raises(UsageError, match="label_names"):
        source(tmp_path, label_names=names)


def test_decathlon(tmp_path):
    root = fake.decathlon(tmp_path, 3, 2, shape=(6, 6, 6))
    found = Decathlon(str(root)).cases()
    assert [case.id for case in found.cases] == ["case_00", "case_01", "case_02"]
    assert [label.name for label in found.labels] == ["background", "blob 1", "blob 2"]
    both = Decathlon(str(root / "dataset.json"), unlabelled=True).cases()
    assert [case.label is None for case in both.cases] == [False] * 3 + [True] * 2
    (root / "imagesTr" / "case_00.nii.gz").unlink()
    (root / "labelsTr" / "case_01.nii.gz").unlink()
    listed = json.loads((root / "dataset.json").read_text())
    listed["training"].append(listed["training"][2])
    (root / "dataset.json").write_text(json.dumps(listed))
    found = Decathlon(str(root)).cases()
    assert not found.cases
    assert sorted(bad.id for bad in found.bad) == ["case_00", "case_01", "case_02"]
    assert "2 cases have the id 'case_02'" in found.bad[-1].reason


@pytest.mark.parametrize(("text", "said"), [("{", "not valid JSON"), ("[]", "no list 'training'"), ("{}", "no list")])
def test_broken_decathlon_files(tmp_path, text, said):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        Decathlon(str(tmp_path)).cases()


def test_medmnist(tmp_path):
    found = MedMNIST(str(fake.medmnist(tmp_path / "x.npz", (5, 3, 2), classes=3))).cases()
    assert [case.id for case in found.cases[:6]] == [*(f"train_{n:05d}" for n in range(5)), "val_00000"]
    assert {case.split for case in found.cases} == {"train", "val", "test"}
    assert found.classes == ("0", "1", "2")
    assert found.cases[1].target == 1
    assert found.cases[6].images == {"image": ArrayItem(tmp_path / "x.npz", "val_images", 1)}
    several = MedMNIST(str(fake.medmnist(tmp_path / "m.npz", classes=4, multilabel=True))).cases()
    assert several.multilabel
    assert len(several.classes) == 4
    assert isinstance(several.cases[0].target, tuple)


def test_broken_medmnist_files(tmp_path):
    np.savez(tmp_path / "x.npz", train_images=np.zeros(3))
    with pytest.raises(MedlightError, match="has no array 'train_labels'"):
        MedMNIST(str(tmp_path / "x.npz")).cases()
    (tmp_path / "y.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(MedlightError, match=r"can't be read as \.npz"):
        MedMNIST(str(tmp_path / "y.npz")).cases()


def test_real_bad_files(data_root, tmp_path):
    """An image without a label and two labels without an image, left over from the data set's first release."""
    bad = data_root / "hippocampus" / "extra_bad"
    for folder, pattern in (("images", "image_*"), ("labels", "label_*")):
        (tmp_path / folder).mkdir()
        for file in bad.glob(pattern):
            (tmp_path / folder / file.name).symlink_to(file)
        for file in sorted((data_root / "hippocampus" / folder).glob("*.nii.gz"))[:2]:
            (tmp_path / folder / file.name).symlink_to(file)
    found = source(tmp_path).cases()
    assert len(found.cases) == 2
    assert len(found.bad) == 3
    for entry in found.bad:
        assert f"{entry.id}.nii.gz: " in entry.reason
        assert "; add the" in entry.reason
