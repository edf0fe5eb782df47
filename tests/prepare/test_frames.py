"""Frames of 4D scans: as channels, as samples of their own, as a clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medlight.errors import CaseError
from medlight.prepare import Case, CaseList, FrameItem, FramesAsSamples, ImageFolders, Preparation, RandomSplit, Store
from medlight.scans import Volume, read, write_nifti
from tests.data import fake, fake_dicom

FRAMES, SHAPE = 5, (8, 9, 6)


class Listed:
    """A source of given cases."""

    def __init__(self, *cases: Case) -> None:
        self.listed = list(cases)

    def cases(self) -> CaseList:
        return CaseList(self.listed)


def write(path: Path, frames: int = FRAMES, shape=SHAPE, top: int = 0, seed: int = 0) -> np.ndarray:
    """A NIfTI with noise (or whole numbers up to ``top``), affine LPS; returns the array ``(C, I, J, K)``."""
    rng = np.random.default_rng(seed)
    size = (frames, *shape)
    array = rng.integers(0, top + 1, size, np.uint8) if top else rng.normal(0, 9, size).astype(np.float32)
    write_nifti(Volume(array, fake.affine((1.0, 1.5, 2.0), "LPS")), path)
    return array


def test_frames_are_channels_unless_said_otherwise(tmp_path: Path) -> None:
    array = write(tmp_path / "x.nii.gz")
    done = Preparation().prepare(Case("x", {"bold": tmp_path / "x.nii.gz"}))
    assert done.channels == tuple(f"bold:{n}" for n in range(FRAMES))
    np.testing.assert_array_equal(done.image, array[:, ::-1, ::-1])


def test_frames_as_samples(tmp_path: Path) -> None:
    array = write(tmp_path / "images" / "x.nii.gz")
    write(tmp_path / "images" / "y.nii.gz", 1)
    maps = write(tmp_path / "labels" / "x.nii.gz", FRAMES, top=2)
    write(tmp_path / "labels" / "y.nii.gz", 1, top=2)
    folders = ImageFolders(str(tmp_path / "images"), str(tmp_path / "labels"))
    found = FramesAsSamples(folders).cases()
    assert [case.id for case in found.cases] == [*(f"x_t{n:03d}" for n in range(FRAMES)), "y"]
    assert {case.subject for case in found.cases} == {"x", None}
    done = Store(tmp_path / "store").prepare(found, Preparation())
    for number, case in enumerate(done.cases[:FRAMES]):
        np.testing.assert_array_equal(case.image(), array[number : number + 1, ::-1, ::-1])
        np.testing.assert_array_equal(case.label(), maps[number, ::-1, ::-1])
        assert case.channels == ("image",)
    assert len({case.key for case in done.cases}) == FRAMES + 1
    split = RandomSplit(val=0.3).assign([case.case for case in done.cases])
    assert {name[0] for name in split.train} != {name[0] for name in split.val}
    with_one_map = Case("x", {"image": tmp_path / "images" / "x.nii.gz"}, tmp_path / "labels" / "y.nii.gz", target=3)
    frames = FramesAsSamples(Listed(with_one_map)).cases().cases
    assert {case.label for case in frames} == {tmp_path / "labels" / "y.nii.gz"}
    assert {case.target for case in frames} == {3}


def test_frames_that_do_not_match_are_bad(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", 5)
    write(tmp_path / "b.nii.gz", 3)
    write(tmp_path / "c.nii.gz", 1)
    one = Case("x", {"a": tmp_path / "a.nii.gz", "b": tmp_path / "b.nii.gz"})
    two = Case("y", {"c": tmp_path / "c.nii.gz", "a": tmp_path / "a.nii.gz"})
    found = FramesAsSamples(Listed(one, two)).cases()
    assert not found.cases
    assert "frames don't match (a 5, b 3)" in found.bad[0].reason
    three = FramesAsSamples(Listed(Case("z", {"a": tmp_path / "a.nii.gz", "c": tmp_path / "c.nii.gz"}))).cases().cases
    assert three[4].images == {"a": FrameItem(tmp_path / "a.nii.gz", 4), "c": tmp_path / "c.nii.gz"}
    with pytest.raises(CaseError, match=r"a.nii.gz: has 5 frames, none at 7"):
        Preparation().prepare(Case("x", {"a": FrameItem(tmp_path / "a.nii.gz", 7)}))


def test_a_series_in_time(tmp_path: Path) -> None:
    grid = fake_dicom.Grid()
    fake_dicom.write(fake_dicom.by_time(3, grid=grid), tmp_path / "images" / "Doe^Jane")
    folders = ImageFolders(str(tmp_path / "images"), unlabelled=True)
    together = Store(tmp_path / "store").prepare(folders.cases(), Preparation()).cases[0]
    apart = Store(tmp_path / "store").prepare(FramesAsSamples(folders).cases(), Preparation()).cases
    assert together.channels == ("image:0", "image:1", "image:2")
    assert len({case.case.id for case in apart}) == 3
    assert all(case.case.id.startswith("case-") for case in apart)
    for number, case in enumerate(apart):
        np.testing.assert_array_equal(case.image()[0], together.image()[number])


def test_a_clip_lies_along_k(tmp_path: Path) -> None:
    array = write(tmp_path / "x.nii.gz", 7, (12, 10, 1))
    maps = write(tmp_path / "y.nii.gz", 7, (12, 10, 1), top=2)
    case = Case("x", {"image": tmp_path / "x.nii.gz"}, tmp_path / "y.nii.gz")
    done = Preparation(frames="clip").prepare(case)
    assert (done.channels, done.frames) == (("image",), 7)
    np.testing.assert_array_equal(done.image[0], np.moveaxis(array[:, ::-1, ::-1, 0], 0, -1))
    np.testing.assert_array_equal(done.label, np.moveaxis(maps[:, ::-1, ::-1, 0], 0, -1))
    assert set(done.foreground) == {1, 2}
    half = Preparation([2.0, 3.0, 0.1], frames="clip").prepare(case)
    assert half.image.shape == (1, 6, 5, 7), "frames are not resampled in time"
    stored = Store(tmp_path / "store").prepare([case], Preparation(frames="clip")).cases[0]
    assert stored.shape == (12, 10, 7)


def test_a_clip_keeps_its_colours_and_its_order(tmp_path: Path) -> None:
    fake_dicom.save(fake_dicom.cine(4), tmp_path / "film.dcm")
    film = read(tmp_path / "film.dcm")
    done = Preparation(frames="clip").prepare(Case("x", {"us": tmp_path / "film.dcm"}))
    assert done.image.shape == (1, *sorted(film.shape[:2], reverse=True), 4) or done.image.shape[-1] == 4
    steps = np.diff(done.image[0].mean(axis=(0, 1)))
    np.testing.assert_allclose(steps, 4096)


def test_what_is_no_clip(tmp_path: Path) -> None:
    write(tmp_path / "volume.nii.gz", 1)
    still = Preparation(frames="clip").prepare(Case("x", {"image": tmp_path / "volume.nii.gz"}))
    assert still.image.shape == (1, *SHAPE)
    assert still.frames == 0
    write(tmp_path / "4d.nii.gz")
    with pytest.raises(CaseError, match="takes single slices, and each frame has 6; set frames: channels"):
        Preparation(frames="clip").prepare(Case("x", {"image": tmp_path / "4d.nii.gz"}))
    write(tmp_path / "clip.nii.gz", 4, (8, 9, 1))
    write(tmp_path / "other.nii.gz", 3, (8, 9, 1))
    with pytest.raises(CaseError, match="as many frames of every image, and there are a 4, b 3"):
        Preparation(frames="clip").prepare(Case("x", {"a": tmp_path / "clip.nii.gz", "b": tmp_path / "other.nii.gz"}))
    write(tmp_path / "map.nii.gz", 1, (8, 9, 1), top=1)
    with pytest.raises(CaseError, match="has 1 channels, the clip has 4 frames; give each its own"):
        Preparation(frames="clip").prepare(Case("x", {"a": tmp_path / "clip.nii.gz"}, tmp_path / "map.nii.gz"))
