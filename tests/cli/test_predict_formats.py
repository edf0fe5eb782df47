"""`medlight predict` on what is no NIfTI: DICOM series, zips, NRRD, films; mends, and segmentations as truth."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from medlight.cli.main import main
from medlight.data import Patch, ScanDataModule
from medlight.deploy.bundle import Bundle
from medlight.deploy.export import export
from medlight.prepare import ImageFolders, Label, Preparation, RandomSplit
from medlight.scans import Volume, read, write_nifti
from medlight.scans.dicom_seg import write_seg
from medlight.tasks import SegmentationTask
from tests.data import fake, fake_dicom
from tests.deploy import trained as tiny

GRID = fake_dicom.Grid(shape=(20, 22, 12), spacing=(1.0, 1.1), step=2.5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny.segmentation(tmp_path_factory.mktemp("trained"))
    return export(made.checkpoint, made.checkpoint.parent / "bundle", cases=None, threads=1).root


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return fake_dicom.write(fake_dicom.series(GRID), tmp_path / "scans" / "Doe^Jane")


def run(*words: str | Path) -> int:
    return main(["predict", *map(str, words), "--threads", "1"])


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_every_format_gives_the_same_label_map(bundle: Path, series: Path, tmp_path: Path) -> None:
    scan, scans = read(series), tmp_path / "scans"
    write_nifti(scan, scans / "nifti.nii.gz")
    fake_dicom.zipped(series, scans / "zipped.zip")
    shutil.copytree(series, scans / "patient" / "study" / "series")
    fake_dicom.save(fake_dicom.enhanced(GRID, modality="CT"), scans / "enhanced.dcm")
    image = sitk.GetImageFromArray(np.ascontiguousarray(scan.array[0].transpose(2, 1, 0)))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine
    image.SetSpacing(scan.spacing)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / scan.spacing).ravel().tolist())
    sitk.WriteImage(image, str(scans / "nrrd.nrrd"))
    sitk.WriteImage(image, str(scans / "detached.mhd"))
    Image.new("L", (9, 9)).save(scans / "shot.png")  # a picture beside scans is none of them
    assert run(bundle, scans, tmp_path / "out", "--format", "nifti") == 0
    made = {file.name for file in (tmp_path / "out").glob("*.nii.gz")}
    names = sorted(file.removesuffix(".nii.gz") for file in made)
    assert [name for name in names if not name.startswith("case-")] == ["detached", "nifti", "nrrd"]
    assert len([name for name in names if name.startswith("case-")]) == 4  # series, the same elsewhere, zip, one file
    assert len([name for name in names if name.endswith("+1")]) == 1
    expected = voxels(tmp_path / "out" / "nifti.nii.gz")
    assert expected.any()
    for name in names:
        np.testing.assert_array_equal(voxels(tmp_path / "out" / f"{name}.nii.gz"), expected, name)
        affine = nib.load(tmp_path / "out" / f"{name}.nii.gz").affine
        np.testing.assert_allclose(affine, fake_dicom.truth(GRID)[1], atol=1e-4)
        assert np.asarray(Image.open(tmp_path / "out" / f"{name}.png")).shape[0] >= 300


def test_a_series_is_one_scan_and_its_folders_name_is_shown_and_not_stored(
    bundle: Path, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (bundle, series, tmp_path / "out", "--probabilities", "--format", "nifti")
    assert run(*words) == 0
    made = {file.name for file in (tmp_path / "out").iterdir()}
    (name,) = {file.split(".")[0] for file in made if file.endswith(".png")}
    ends = (".nii.gz", ".png", "_probabilities.nii.gz")
    assert made == {*(f"{name}{end}" for end in ends), "predictions.json", "summary.json", "summary.csv"}
    assert voxels(tmp_path / "out" / f"{name}_probabilities.nii.gz").shape == (22, 20, 12, 3)
    assert f"{name}: {series}" in capsys.readouterr().out
    assert all("Doe" not in (tmp_path / "out" / name).read_text() for name in made if name.endswith(("json", "csv")))
    assert run(*words) == 0
    assert "1 of them before" in capsys.readouterr().out
    file = next(series.iterdir())
    file.write_bytes(file.read_bytes()[:-2] + b"\x01\x00")
    assert run(*words) == 0
    assert "before" not in capsys.readouterr().out


def test_mends_are_asked_for_by_flag_or_by_the_bundle(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = fake_dicom.write(fake_dicom.without(fake_dicom.series(GRID), 5), tmp_path / "gap")
    assert run(bundle, series, tmp_path / "out") == 1
    assert "--on gap=interpolate mends it" in capsys.readouterr().err
    words = ("--on", "gap=interpolate", "--format", "nifti", "--json", tmp_path / "out.json")
    assert run(bundle, series, tmp_path / "out", *words) == 0
    assert ": gap: " in capsys.readouterr().out
    (made,) = (tmp_path / "out").glob("*.nii.gz")
    assert voxels(made).shape == (22, 20, 12)
    assert len(json.loads((tmp_path / "out.json").read_text())["cases"][0]["mended"]) == 1
    assert run(bundle, series, tmp_path / "out", "--on", "gap=interpolat") == 2
    assert "did you mean 'interpolate'" in capsys.readouterr().err
    mending = shutil.copytree(bundle, tmp_path / "mending")
    loaded = Bundle.load(mending)
    preparation = {**loaded.data["preparation"], "on": {"gap": "interpolate"}}
    dataclasses.replace(loaded, data={**loaded.data, "preparation": preparation}).save()
    assert run(mending, series, tmp_path / "again", "--format", "nifti") == 0
    np.testing.assert_array_equal(voxels(tmp_path / "again" / made.name), voxels(made))
    assert run(mending, series, tmp_path / "again", "--on", "gap=error") == 1


def test_the_truth_may_be_a_segmentation(bundle: Path, series: Path, tmp_path: Path) -> None:
    scan = read(series)
    mask = np.zeros((1, *scan.shape), np.uint8)
    mask[0, 4:9, 5:11, 3:7], mask[0, 12:18, 5:11, 3:7] = 1, 2
    truth = Volume(mask, scan.affine)
    (tmp_path / "truth").mkdir()
    write_seg(truth, series, tmp_path / "truth" / "Doe^Jane.dcm", (Label(1, "one"), Label(2, "two")))
    write_nifti(truth, tmp_path / "nifti" / "Doe^Jane.nii.gz")
    found = []
    for folder in ("truth", "nifti"):
        words = (tmp_path / f"out {folder}", "--truth", tmp_path / folder, "--json", tmp_path / f"{folder}.json")
        assert run(bundle, series, *words) == 0
        found.append(json.loads((tmp_path / f"{folder}.json").read_text())["cases"][0]["dice"])
    assert found[0] == found[1]
    assert set(found[0]) == {"one", "two"}


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("scans/Doe^Jane/out", "lies in"),
        ("out.mha", "a label map is written as NIfTI or DICOM-SEG"),
    ],
)
def test_outs_that_can_not_be(
    bundle: Path, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, said: str
) -> None:
    before = sorted(series.rglob("*"))
    assert run(bundle, series, tmp_path / out) == 2
    assert said in capsys.readouterr().err
    assert sorted(series.rglob("*")) == before


def test_films(tmp_path: Path) -> None:
    """A network over clips: trained, compared with its bundle, and run; a label map for each frame."""
    for number in range(4):
        image, label = fake.volume((20, 18, 8), seed=number)
        for kind, volume in (("images", image), ("labels", label)):
            frames = np.moveaxis(volume.array[0], -1, 0)[..., None]  # along K becomes time
            write_nifti(Volume(frames, volume.affine), tmp_path / kind / f"{number}.nii.gz")
    data = ScanDataModule(
        ImageFolders(str(tmp_path / "images"), str(tmp_path / "labels"), {1: "one", 2: "two"}),
        RandomSplit(val=0.5),
        Preparation(frames="clip"),
        patch=Patch([16, 16, 8]),
        store_dir=str(tmp_path / "store"),
    )
    task = SegmentationTask(network=tiny.UNET, optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}})
    made = tiny.fit(task, data, tmp_path)
    assert data.spatial_dims == 3
    assert data.signature()["channels"] == ["image"]
    found = export(made.checkpoint, tmp_path / "bundle", cases=made.cases, threads=1)
    assert found.parity["passed"]
    scan = tmp_path / "images" / "0.nii.gz"
    words = (tmp_path / "out", "--truth", tmp_path / "labels", "--probabilities")
    assert run(found.root, scan, *words, "--json", tmp_path / "out.json") == 0
    predicted = voxels(tmp_path / "out" / "0.nii.gz")
    assert predicted.shape == voxels(scan).shape == (20, 18, 1, 8)
    chances = voxels(tmp_path / "out" / "0_probabilities.nii.gz").reshape(20, 18, 1, 3, 8)
    assert (chances.argmax(axis=3) == predicted).mean() > 0.999
    truth = voxels(tmp_path / "labels" / "0.nii.gz")
    both = 2 * ((truth == 1) & (predicted == 1)).sum() / ((truth == 1).sum() + (predicted == 1).sum())
    assert json.loads((tmp_path / "out.json").read_text())["cases"][0]["dice"]["one"] == pytest.approx(both)
