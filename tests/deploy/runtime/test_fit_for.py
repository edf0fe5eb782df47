"""What is new to a bundle in a scan: each contrast and each channel counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlight.deploy.runtime import Predictor
from medlight.deploy.runtime.checked import predict_checked
from medlight.deploy.runtime.fit_for import misfits
from medlight.errors import MedlightError
from medlight.prepare.preparation import Preparation
from medlight.scans import Channel, Volume, write_nifti
from tests.deploy.runtime.bundles import bundle, written

DATA: dict[str, Any] = {"spatial_dims": 3, "spacing_range": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.5]]}
FAR = "has voxels of 1x1x9 mm (RAS), but the bundle was trained on 1x1x1-1.5 mm"


def scan(step: float = 1.0, shape: tuple[int, ...] = (1, 8, 8, 8), **more: Any) -> Volume:
    array = np.random.default_rng(0).integers(1, 900, shape).astype(np.int16)
    return Volume(array, np.diag([1.0, 1.0, step, 1.0]), **more)


def said(scans: dict[str, Volume], clip: bool = False, **changes: Any) -> list[str]:
    return misfits(DATA | changes, Preparation(frames="clip" if clip else "channels"), scans)


def test_voxel_sizes_of_each_contrast() -> None:
    thick = {"spacing_ranges": {"flair": [[1.0, 1.0, 4.0], [1.0, 1.0, 5.0]]}}
    thin = "flair has voxels of 1x1x1 mm (RAS), but the bundle was trained on 1x1x4-5 mm"
    assert said({"t1": scan(), "flair": scan(9.0)}, **thick) == []
    assert said({"t1": scan(), "flair": scan()}, **thick) == [thin]
    assert said({"t1": scan(9.0), "flair": scan(5.0)}, **thick) == [f"t1 {FAR}"]
    assert said({"t1": scan(9.0), "flair": scan()}, **thick) == [f"t1 {FAR}", thin]
    assert said({"image": scan(9.0)}) == [FAR]
    assert said({"t1": scan(), "flair": scan(9.0)}) == []  # a bundle that tells nothing of the second


def test_a_single_slice_among_volumes() -> None:
    slice_ = scan(shape=(1, 8, 8, 1))
    assert said({"image": slice_}) == ["is a single slice, but the bundle was trained on volumes"]
    assert said({"t1": scan(), "flair": slice_}) == ["flair is a single slice, but the bundle was trained on volumes"]
    assert said({"t1": slice_, "flair": slice_}, spatial_dims=2) == []


def emptied(volume: Volume, *channels: int) -> Volume:
    volume.array[list(channels)] = 7
    return volume


def test_empty_channels() -> None:
    end = "has one value everywhere, so there is nothing to see in it"
    four = (4, 8, 8, 8)
    assert said({"image": emptied(scan(shape=four), 2)}) == [f"image:2 {end}"]
    assert said({"image": emptied(scan(shape=four), 0, 3)}) == [f"image:0 and image:3 {end}"]
    assert said({"image": emptied(scan(shape=four), 0, 1, 2, 3)}) == [f"image {end}"]
    assert said({"t1": scan(), "flair": emptied(scan(), 0)}) == [f"flair {end}"]
    assert said({"t1": scan(), "both": emptied(scan(shape=(2, 8, 8, 8)), 1)}) == [f"both:1 {end}"]


def test_a_colour_or_a_frame_may_be_empty() -> None:
    colours = tuple(Channel(name) for name in ("red", "green", "blue"))
    picture = scan(shape=(3, 8, 8, 1), channels=colours)
    assert said({"image": emptied(picture, 2)}, spatial_dims=2) == []
    assert len(said({"image": emptied(scan(shape=(3, 8, 8, 1), channels=colours), 0, 1, 2)}, spatial_dims=2)) == 1
    assert said({"image": emptied(scan(shape=(5, 8, 8, 1)), 0)}, clip=True) == []
    assert len(said({"image": emptied(scan(shape=(5, 8, 8, 1)), 0, 1, 2, 3, 4)}, clip=True)) == 1


def test_files_of_two_contrasts(tmp_path: Path) -> None:
    made = bundle(3, [8, 8, 8], channels=["t1", "flair"], **DATA | {"spacing_ranges": {"flair": DATA["spacing_range"]}})
    predictor = Predictor(written(tmp_path / "bundle", made), threads=1)
    files = {"t1": tmp_path / "t1.nii.gz", "flair": tmp_path / "flair.nii.gz"}
    write_nifti(scan(), files["t1"])
    write_nifti(scan(9.0), files["flair"])
    with pytest.raises(MedlightError, match=r"t1\.nii\.gz: flair has voxels of 1x1x9 mm"):
        predict_checked(predictor, files)
    (warning,) = predict_checked(predictor, files, force=True).warnings
    assert warning.startswith("forced: flair has voxels of 1x1x9 mm")
    write_nifti(scan(), files["flair"])
    assert predict_checked(predictor, files).warnings == []
