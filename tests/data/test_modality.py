"""What the images are may be declared where their files do not tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from medlight.data import Patch, ScanDataModule
from medlight.errors import UsageError
from medlight.prepare import ImageFolders, RandomSplit
from tests.data import fake, fake_dicom


def module(source: ImageFolders, store: Path, **options) -> ScanDataModule:
    patch, split = Patch([8, 8, 8]), RandomSplit(0.5)
    data = ScanDataModule(source, split, patch=patch, store_dir=str(store), **options)
    data.prepare_data()
    data.setup()
    return data


def dicom(root: Path, cases: int = 2) -> ImageFolders:
    for number in range(cases):
        grid = fake_dicom.Grid((16, 16, 12), origin=(0.0, 0.0, float(number)))
        fake_dicom.write(fake_dicom.series(grid, series=f"s{number}", modality="CT"), root / "images" / str(number))
    return ImageFolders(str(root / "images"), unlabelled=True)


@pytest.mark.parametrize(("options", "known"), [({}, []), ({"modality": "MR"}, ["MR"])])
def test_nifti_tells_none_unless_it_is_declared(tmp_path: Path, options: dict, known: list[str]) -> None:
    fake.folders(tmp_path, cases=2, shape=(16, 16, 16))
    source = ImageFolders(str(tmp_path / "images"), str(tmp_path / "labels"))
    assert module(source, tmp_path / "store", **options).signature()["modalities"] == known


@pytest.mark.parametrize("options", [{}, {"modality": "CT"}])
def test_dicom_tells_its_own(tmp_path: Path, options: dict) -> None:
    assert module(dicom(tmp_path), tmp_path / "store", **options).signature()["modalities"] == ["CT"]


def test_files_that_say_another_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.modality: MR, but the files of case case-\w+ say CT; mend"):
        module(dicom(tmp_path), tmp_path / "store", modality="MR")


@pytest.mark.parametrize(
    ("term", "mend"),
    [("mr", r"did you mean 'MR'"), ("MRI", r"did you mean 'MR'"), ("", "; write CT"), ("radiograph", "; write CT, MR")],
)
def test_what_is_no_term_of_dicom_is_refused(tmp_path: Path, term: str, mend: str) -> None:
    with pytest.raises(UsageError, match=rf"data\.modality: .* is no modality of DICOM.*{mend}"):
        module(dicom(tmp_path), tmp_path / "store", modality=term)
