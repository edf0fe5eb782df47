"""Public data sets: where they are, and how they are fetched whole and checked, or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medlight.config import nearest
from medlight.errors import MedlightError, UsageError

DECATHLON = (
    "Task01_BrainTumour",
    "Task02_Heart",
    "Task03_Liver",
    "Task04_Hippocampus",
    "Task05_Prostate",
    "Task06_Lung",
    "Task07_Pancreas",
    "Task08_HepaticVessel",
    "Task09_Spleen",
    "Task10_Colon",
)
# MD5 of the 28-pixel files, from the package medmnist 3.0.2 (https://zenodo.org/records/10519652)
MEDMNIST = {
    "pathmnist": "a8b06965200029087d5bd730944a56c1",
    "chestmnist": "02c8a6516a18b556561a56cbdd36c4a8",
    "dermamnist": "0744692d530f8e62ec473284d019b0c7",
    "octmnist": "c68d92d5b585d8d81f7112f81e2d0842",
    "pneumoniamnist": "28209eda62fecd6e6a2d98b1501bb15f",
    "retinamnist": "bd4c0672f1bba3e3a89f0e4e876791e4",
    "breastmnist": "750601b1f35ba3300ea97c75c52ff8f6",
    "bloodmnist": "7053d0359d879ad8a5505303e11de1dc",
    "tissuemnist": "ebe78ee8b05294063de985d821c1c34b",
    "organamnist": "68e3f8846a6bd62f0c9bf841c0d9eacc",
    "organcmnist": "b9ceb9546e10131b32923c5bbeaea2b1",
    "organsmnist": "9ab87b696fb54e2a387ebe992d6ed5f1",
    "organmnist3d": "a0c5a1ff56af4f155c46d46fbb45a2fe",
    "nodulemnist3d": "8755a7e9e05a4d9ce80a24c3e7a256f3",
    "adrenalmnist3d": "bbd3c5a5576322bc4cdfea780653b1ce",
    "fracturemnist3d": "6aa7b0143a6b42da40027a9dda61302f",
    "vesselmnist3d": "b41fd4f7e7e2feedddb201585ecafa1b",
    "synapsemnist3d": "1235b78a3cd6280881dd7850a78eadb6",
}


@dataclass(frozen=True)
class DataSet:
    """A public data set: one file with a known digest, an archive that holds the folder ``name`` or the data itself."""

    name: str
    url: str
    md5: str

    @property
    def file(self) -> str:
        """The official file's name."""
        return f"{self.name}.tar" if self.archive else f"{self.name}.npz"

    @property
    def archive(self) -> bool:
        """Whether the file is unpacked."""
        return self.name not in MEDMNIST


def find(name: str) -> DataSet:
    """Return a data set by name; an unknown one is a UsageError that says the nearest."""
    if name in MEDMNIST:
        return DataSet(name, f"https://zenodo.org/records/10519652/files/{name}.npz?download=1", MEDMNIST[name])
    if name not in DECATHLON:
        raise UsageError(f"{name}: no data set of this name{nearest(name, (*DECATHLON, *MEDMNIST))}")
    from monai.apps.datasets import DecathlonDataset

    return DataSet(name, DecathlonDataset.resource[name], DecathlonDataset.md5[name])


def default_folder() -> Path:
    """The data root, else ``data`` in the current folder."""
    return Path(os.environ.get("MEDLIGHT_DATA") or "data")


def fetch(dataset: DataSet, out: Path, source: str | None = None, progress: bool = False) -> Path:
    """Fetch a data set into a folder; returns the folder or file that it became.

    source: a local file, a folder that holds the official file, or a URL, in place of the official one. The digest is
    checked whatever the source. Raises MedlightError where it is wrong or the file can't be had; nothing is left then.
    """
    place = out / (dataset.name if dataset.archive else dataset.file)
    if place.exists():
        if not dataset.archive:
            _check(dataset, place)
        return place
    local = _local(dataset, source)
    if local:
        _check(dataset, local)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=out) as folder:
        file = local or _download(dataset, source or dataset.url, Path(folder), progress)
        os.replace(_unpack(dataset, file, Path(folder)), place)
    return place


def _local(dataset: DataSet, source: str | None) -> Path | None:
    """The local file that a source means, or None for a URL."""
    if source is None or source.startswith(("http://", "https://")):
        return None
    path = Path(source).expanduser()
    file = path / dataset.file if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"--from {source}: no file {file}; give {dataset.file} or the folder that holds it")
    return file


def _check(dataset: DataSet, file: Path) -> None:
    from monai.apps.utils import check_hash

    with _quiet_monai():
        if not check_hash(file, dataset.md5, "md5"):
            raise MedlightError(
                f"{file}: its md5 is not {dataset.md5}, that of the official {dataset.file}; fetch it anew"
            )


def _download(dataset: DataSet, url: str, folder: Path, progress: bool) -> Path:
    """Download to a folder and check the digest."""
    file = folder / dataset.file
    url = url + dataset.file if url.endswith("/") else url
    from monai.apps.utils import HashCheckError, download_url

    with _quiet_monai(), _temporary_files_in(folder):
        try:
            download_url(url, file, dataset.md5, "md5", progress)
        except HashCheckError:
            raise MedlightError(
                f"{url}: what came has not the md5 {dataset.md5} of the official {dataset.file}; nothing was kept; "
                "try again or give another --from"
            ) from None
        except (OSError, RuntimeError, ValueError) as error:  # URLError and ContentTooShortError are OSErrors
            raise MedlightError(f"{url}: download failed ({error}); try again or give another --from") from None
    return file


def _unpack(dataset: DataSet, file: Path, folder: Path) -> Path:
    """Bring the file to its final form inside the temporary folder."""
    if not dataset.archive:
        final = folder / dataset.file
        if file != final:
            shutil.copyfile(file, final)
        return final
    from monai.apps.utils import extractall

    inside = folder / "unpacked"
    with _quiet_monai():
        extractall(file, inside, file_type="tar", has_base=False)
    if not (inside / dataset.name).is_dir():
        raise MedlightError(f"{file}: holds no folder {dataset.name}; fetch it anew")
    return inside / dataset.name


@contextmanager
def _quiet_monai() -> Iterator[None]:
    """Our own errors say what MONAI logs."""
    logger = logging.getLogger("monai.apps")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """MONAI downloads to the system's folder for temporary files, which is often too small for these."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
