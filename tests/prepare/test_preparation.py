"""Preparation of one case: what comes out, and what is refused."""

from __future__ import annotations

import sys
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medlight.errors import CaseError, UsageError
from medlight.prepare import ArrayItem, Case, Label, Preparation, restore, voxels
from medlight.prepare.prepared import write_prepared
from medlight.scans import Volume, orientation, write_nifti
from tests.data import fake


def case(root, number=0, **more):
    name = f"case_{number:02d}.nii.gz"
    return Case(f"case_{number:02d}", {"image": root / "images" / name}, root / "labels" / name, **more)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["RAS", "LPS", "ASL", "IRP"]),
    st.sampled_from(["RAS", "LPI", "SAR"]),
    st.tuples(*[st.floats(0.8, 1.6)] * 3),
    st.integers(0, 50),
)
def test_there_and_back_again(start, end, spacing, seed):
    image, label = fake.volume((40, 44, 36), codes=start, seed=seed)
    done = Preparation(list(spacing), end).prepare_volumes({"image": image}, label.array[0])
    assert orientation(done.affine) == end
    np.testing.assert_allclose(np.linalg.norm(done.affine[:3, :3], axis=0), spacing)
    assert done.image.shape == (1, *done.label.shape)
    assert done.image.dtype == np.float32
    back = restore(done.label, done.affine, done.original_affine, done.original_shape)
    for value in (1, 2):
        one, other = back == value, label.array[0] == value
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > (0.88 if other.sum() > 1000 else 0.75)
    # the bright blob stays under its label
    inside = done.image[0][ndimage.binary_erosion(done.label == 2)]
    outside = done.image[0][done.label == 0]
    assert inside.size == 0 or inside.mean() > outside.mean()


def test_own_spacing_changes_no_value(tmp_path):
    fake.folders(tmp_path, 1, (9, 8, 7), codes="LPS", spacing=(0.5, 1, 2))
    done = Preparation().prepare(case(tmp_path))
    oracle = nib.as_closest_canonical(nib.load(tmp_path / "images" / "case_00.nii.gz"))
    np.testing.assert_array_equal(done.image[0], oracle.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(done.affine, oracle.affine)
    truth = nib.as_closest_canonical(nib.load(tmp_path / "labels" / "case_00.nii.gz"))
    np.testing.assert_array_equal(done.label, np.asarray(truth.dataobj))
    assert done.label.dtype == np.uint8
    assert done.original_shape == (9, 8, 7)


def test_statistics_and_foreground(tmp_path):
    fake.folders(tmp_path, 1, (80, 100, 90), labels=1)
    done = Preparation().prepare(case(tmp_path))
    assert done.values == (0, 1)
    for value in (1,):
        index = done.foreground[value]
        assert done.counts[value] == (done.label == value).sum()
        assert len(index) == min(10_000, done.counts[value])
        assert (done.label[tuple(index.T)] == value).all()
        assert len(np.unique(index, axis=0)) == len(index)
        again = Preparation().prepare(case(tmp_path)).foreground[value]
        np.testing.assert_array_equal(index, again)
    assert max(done.counts.values()) > 10_000
    assert done.stats[0]["mean"] == pytest.approx(done.image.mean(dtype=np.float64))


def test_foreground_of_a_big_label_map_is_found_in_blocks(monkeypatch):
    label = np.random.default_rng(0).integers(0, 4, (40, 30, 35), np.uint8)
    whole, counts = voxels.foreground(label)
    monkeypatch.setattr(voxels, "SLAB", 999)
    parts, again = voxels.foreground(label)
    assert counts == again == {value: int((label == value).sum()) for value in (1, 2, 3)}
    for value, index in whole.items():
        np.testing.assert_array_equal(parts[value], index)
        assert len(index) == 10_000


def test_several_images_come_onto_the_first_ones_grid(tmp_path):
    first, _ = fake.volume((20, 20, 20), seed=1)
    fine = fake.affine((0.5, 0.5, 0.5), "LPS", first.affine[:3, 3] + [18, 18, 1])
    at = np.linalg.inv(first.affine) @ fine
    grid = np.stack([*np.indices((34, 34, 34)).reshape(3, -1), np.ones(34**3)])
    where = (at @ grid)[:3]
    wave = lambda i, j, k: 50 * np.sin(i / 4) + 30 * np.cos(j / 5) + k  # noqa: E731
    second = Volume(wave(*where).reshape(1, 34, 34, 34).astype(np.float32), fine)
    flipped = Volume(np.stack([first.array[0], 2 * first.array[0]]), first.affine)
    done = Preparation().prepare_volumes({"t1": first, "t2": second, "dwi": flipped})
    assert done.channels == ("t1", "t2", "dwi:0", "dwi:1")
    assert done.image.shape == (4, 20, 20, 20)
    np.testing.assert_array_equal(done.image[3], 2 * done.image[0])
    inner = (slice(4, 14),) * 3
    np.testing.assert_allclose(done.image[1][inner], wave(*np.indices((20, 20, 20)))[inner], atol=0.1)
    assert len(done.stats) == 4


def test_flat_images(tmp_path):
    path = fake.medmnist(tmp_path / "x.npz", (2, 1, 1), size=16, colour=True)
    done = Preparation([0.5, 0.5, 9]).prepare(Case("a", {"image": ArrayItem(path, "train_images", 1)}, target=1))
    assert done.image.shape == (3, 31, 31, 1)
    pixels = np.load(path)["train_images"][1]
    plain = Preparation().prepare(Case("a", {"image": ArrayItem(path, "train_images", 1)}))
    np.testing.assert_array_equal(plain.image[0, ::-1, ::-1, 0].T, pixels[..., 0])  # rows run down, columns to the left
    # a flat slice in another plane stays flat along its last axis
    affine = fake.affine((1, 1, 1), "ASR")
    done = Preparation().prepare_volumes({"image": Volume(np.ones((1, 5, 6, 1)), affine)})
    assert done.image.shape == (1, 5, 6, 1)


def test_a_label_map_of_floats_is_fine_when_it_is_whole(tmp_path):
    fake.folders(tmp_path, 1, (8, 8, 8))
    path = tmp_path / "labels" / "case_00.nii.gz"
    label = nib.load(path)
    whole = np.asarray(label.dataobj).astype(np.int32)
    nib.save(nib.Nifti1Image(whole.astype(np.float64), label.affine), path)
    assert Preparation().prepare(case(tmp_path)).label.dtype == np.uint8
    nib.save(nib.Nifti1Image(whole * 1000, label.affine), path)
    done = Preparation([0.7, 0.7, 0.7]).prepare(case(tmp_path))
    assert done.label.dtype == np.uint16
    assert set(np.unique(done.label)) <= {0, 1000, 2000}


SAID = {
    "empty": "is empty",
    "truncated": "can't be read as NIfTI",
    "text": "can't be read as NIfTI",
    "shape": r"7x8x8 voxels, but .*images.case_00.nii.gz has 8x8x8; resample",
    "affine": "3 mm away",
    "value": r"unknown label value 77 \(label_names lists 0, 1, 2\); correct the file or name",
    "fraction": r"has the value 0\.5, a label map holds whole numbers; round",
    "negative": "label value -2, outside 0 to 65535",
    "nan": "1 voxels are NaN or infinite; replace",
    "no_image": "no such file",
    "no_label": "no such file",
    "singular": "affine is singular",
    "complex": "complex64",
    "channels": "has 2 channels, a label map has one",
}


@pytest.mark.parametrize("kind", fake.BAD)
def test_bad_cases_name_the_file_and_the_mend(tmp_path, kind):
    fake.folders(tmp_path, 1, (8, 8, 8))
    file = fake.spoil(tmp_path, "case_00", kind)
    if kind.startswith("no_"):
        file = file.parents[1] / ("images" if kind == "no_image" else "labels") / file.name
    with pytest.raises(CaseError, match=SAID[kind]) as caught:
        Preparation().prepare(case(tmp_path), (Label(0, "background"), Label(1, "a"), Label(2, "b")))
    assert caught.value.case_id == "case_00"
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_images_of_different_places(tmp_path):
    first, _ = fake.volume((8, 8, 8))
    away = first.affine.copy()
    away[2, 3] += 500
    write_nifti(first, tmp_path / "a.nii.gz")
    write_nifti(Volume(first.array, away), tmp_path / "b.nii.gz")
    with pytest.raises(CaseError, match=r"b\.nii\.gz: shows no place that .*a\.nii\.gz shows"):
        Preparation().prepare(Case("x", {"a": tmp_path / "a.nii.gz", "b": tmp_path / "b.nii.gz"}))


def test_an_entry_that_is_not_there(tmp_path):
    path = fake.medmnist(tmp_path / "x.npz", (2, 1, 1))
    with pytest.raises(CaseError, match="train_images has 2 entries, none at 5"):
        Preparation().prepare(Case("x", {"image": ArrayItem(path, "train_images", 5)}))


def test_header_rounding_is_no_mismatch(tmp_path):
    fake.folders(tmp_path, 1, (8, 8, 8), spacing=(0.4, 0.4, 0.4))
    path = tmp_path / "labels" / "case_00.nii.gz"
    label = nib.load(path)
    affine = label.affine.copy()
    affine[:3] += 1e-4
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), affine), path)
    Preparation().prepare(case(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"spacing": [1, 1]}, "three lengths"),
        ({"spacing": [1, 0, 1]}, "three lengths"),
        ({"orientation": "RAX"}, "such as 'RAS'"),
        ({"orientation": "RLS"}, "such as 'RAS'"),
        ({"anisotropy_threshold": 0.5}, "at least 1"),
    ],
)
def test_wrong_arguments(options, said):
    with pytest.raises(UsageError, match=said):
        Preparation(**options)


def test_equal_specs_are_written_alike():
    assert Preparation([1, 1, 2]).to_dict() == Preparation([1.0, 1.0, 2.0]).to_dict()
    assert Preparation(**Preparation([1, 1, 2], "LPS").to_dict()) == Preparation([1, 1, 2], "LPS")


def test_real_scans_in_other_orientations(data_root):
    root = data_root / "sct_testing_data"
    for image, label in (("t2/t2.nii.gz", "t2/t2_seg-manual.nii.gz"), ("t1/t1w.nii.gz", "t1/t1w_seg-manual.nii.gz")):
        spec = Case("x", {"image": root / image}, root / label)
        done = Preparation([1.0, 1.0, 1.0]).prepare(spec)
        assert orientation(done.affine) == "RAS"
        truth = np.asarray(nib.load(root / label).dataobj)
        back = restore(done.label, done.affine, done.original_affine, done.original_shape)
        assert 2 * ((back > 0) & (truth > 0)).sum() / ((back > 0).sum() + (truth > 0).sum()) > 0.95


@pytest.mark.parametrize("spacing", [None, [0.9, 0.9, 0.9]])
def test_no_more_than_three_copies_are_held(tmp_path, monkeypatch, spacing):
    """Of the prepared volume, in float32; what is worked on at a time comes on top, and is small beside a big scan."""
    for module in ("interpolate", "voxels"):
        monkeypatch.setattr(sys.modules[f"medlight.prepare.{module}"], "SLAB", 2**16)
    monkeypatch.setattr(sys.modules["medlight.prepare.statistics"], "BLOCK", 2**16)
    shape = (128, 128, 160)
    values = np.random.default_rng(0).integers(-1000, 1000, (1, *shape)).astype(np.int16)
    label = (values > 600).astype(np.uint8)
    for name, array in (("image", values), ("label", label)):
        write_nifti(Volume(array, np.eye(4)), tmp_path / f"{name}.nii")
    del values, label, array
    tracemalloc.start()
    done = Preparation(spacing).prepare(Case("x", {"image": tmp_path / "image.nii"}, tmp_path / "label.nii"))
    write_prepared(done, tmp_path / "x.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * done.image.nbytes + 12e6  # 8 MB are the inner bins of the percentiles
