"""Mutants of whole DICOM series: the same volume as before, the volume that the files state, or a named refusal.

What was read is the volume that the files state if a direct reading by pydicom agrees: every object is a part of it,
each slice lies where its object says (within the tolerances of ``scans.dicom.geometry``), in that direction, with that
spacing, and holds that object's pixels. One file of several that says another geometry than the rest is no such volume.

The bytes of uncompressed pixels are left alone, since any value is a legitimate one; where compressed ones were
changed, and where a file says otherwise what its numbers mean (bits, sign, rescale), the geometry has to be right, and
the slices of files that were not touched.
"""

from __future__ import annotations

import io
import json
import random
import resource
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_rescale

from medlight.cli.main import main
from medlight.errors import MedlightError
from medlight.scans.dicom.load import read_dicom
from medlight.scans.dicom.survey import survey
from medlight.scans.volume import Volume
from tests.data import dicom_mutants as mutants
from tests.data import fake_dicom as fake

# Of this process; and by the clock, on a machine that does much else. A broken frame may take its decoder down, and
# a new one takes a second to start.
SECONDS, SECONDS_BY_CLOCK = 4.0, 25.0
MEMORY = 500 << 10  # kilobytes
REAL = {
    "explicit": "generic/anatomical/001",
    "implicit": "generic/anatomical/001_implicit",
    "anisotropic": "generic/anatomical/002_non_isotropic",
    "jpeg2000": "generic/compressed_j2k/001",
    "jpeg2000 of gdcm": "generic/compressed/001",
    "jpeg": "generic/compressed_jpeg/001",
    "jpeg-ls": "generic/compressed_jpegls/001",
    "rle": "generic/compressed_rle/001",
    "colour": "generic/rgb/001",
    "ct": "anatomical/001",
    "phantom": "dcmqi/segmentations/24x38x3/image",
    "enhanced ct": "dcmqi/segmentations/24x38x3/multiframe",
    "oblique": "rt_utils/oriented_data",
}
PYDICOM = {"enhanced ct of two": "eCT_Supplemental.dcm", "dose": "rtdose.dcm", "dose in rle": "rtdose_rle.dcm"}
FAKE = {
    "fake": lambda: fake.series(),
    "fake oblique": lambda: fake.series(fake.Grid(orientation=fake.OBLIQUE), modality="MR"),
    "fake enhanced": lambda: [fake.enhanced(seed=3)],
    "fake enhanced of frames": lambda: [fake.enhanced(fake.Grid(orientation=fake.CORONAL), shared=False)],
    "fake mosaic": lambda: [fake.mosaic()],
    "fake 4d": lambda: fake.by_time(2),
    "fake scanner": lambda: [fake.scanner_header(one) for one in fake.series()],
}


def _content(folder: Path) -> mutants.Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in ("", ".dcm")}


@pytest.fixture(scope="module")
def seeds(data_root, tmp_path_factory) -> dict[str, tuple[mutants.Files, Volume]]:
    """Series of every encoding, with what they are read as."""
    made = tmp_path_factory.mktemp("seeds")
    found = {name: data_root / "dicom" / folder for name, folder in REAL.items()}
    for name, datasets in FAKE.items():
        found[name] = fake.write(datasets(), made / name)
    for name, syntax in (("fake big", uid.ExplicitVRBigEndian), ("fake deflated", uid.DeflatedExplicitVRLittleEndian)):
        datasets = fake.series()
        for dataset in datasets:
            dataset.file_meta.TransferSyntaxUID = syntax
            if syntax == uid.ExplicitVRBigEndian:
                dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        found[name] = fake.write(datasets, made / name)
    for name, file in PYDICOM.items():
        found[name] = made / name
        found[name].mkdir()
        (found[name] / file).write_bytes(Path(get_testdata_file(file)).read_bytes())
    return {name: (_content(folder), read_dicom(folder)) for name, folder in found.items()}


def lay(files: mutants.Files, folder: Path) -> Path:
    """Write a series below a folder that is new."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# -- What the files state, by pydicom alone


class Plane:
    """One plane of pixels as its object states it."""

    def __init__(self, name, dataset, groups, pixels, shape) -> None:
        def of(keyword, inner):
            for group in groups:
                items = group.get(keyword)
                if items:
                    return np.array(items[0].get(inner), float)
            return np.array(dataset.get(inner), float)

        self.name, self.pixels, self.shape = name, pixels, shape
        self.position = of("PlanePositionSequence", "ImagePositionPatient")
        self.ways = of("PlaneOrientationSequence", "ImageOrientationPatient").reshape(2, 3)
        self.spacing = of("PixelMeasuresSequence", "PixelSpacing")


def planes(name: str, data: bytes, slices: int) -> list[Plane]:
    """The planes of an object; slices: how many tiles a mosaic has, less than 0 where they go against the normal.

    Which way they go stands in Siemens' own header only, and both are tried.
    """
    dataset = mutants.parsed(data)
    shape = (dataset.Rows, dataset.Columns)
    try:
        pixels = apply_rescale(dataset.pixel_array, dataset) * float(dataset.get("DoseGridScaling", 1))
    except Exception:  # what its numbers are is not known to pydicom
        pixels = None
    if "MOSAIC" in dataset.get("ImageType", ()):
        return _tiles(name, dataset, pixels, slices)
    frames = int(dataset.get("NumberOfFrames") or 1)
    own, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    found = []
    for index in range(frames):
        groups = [*([own[index]] if own else []), *(shared or [])]
        value = None if pixels is None else pixels if frames == 1 else pixels[index]
        found.append(Plane(name, dataset, groups, value, shape))
        if "GridFrameOffsetVector" in dataset and frames > 1:
            offsets = np.array(dataset.GridFrameOffsetVector, float)
            found[-1].position = found[-1].position + (offsets[index] - offsets[0]) * np.cross(*found[-1].ways)
    return found


def _tiles(name, dataset, pixels, slices) -> list[Plane]:
    way, slices = np.sign(slices), abs(slices)
    side = int(np.ceil(np.sqrt(slices)))
    rows, columns = dataset.Rows // side, dataset.Columns // side
    found = []
    for index in range(slices):
        row, column = index // side * rows, index % side * columns
        part = pixels[row : row + rows, column : column + columns]
        tile = Plane(name, dataset, [], part, (rows, columns))
        across, down = tile.ways
        shift = (dataset.Columns - columns) / 2 * tile.spacing[1] * across
        shift = shift + (dataset.Rows - rows) / 2 * tile.spacing[0] * down
        step = way * float(dataset.SpacingBetweenSlices) * np.cross(across, down)
        tile.position = tile.position + shift + index * step
        found.append(tile)
    return found


def members(files: mutants.Files) -> mutants.Files:
    """The objects, those in a zip included."""
    if "series.zip" not in files:
        return files
    with zipfile.ZipFile(io.BytesIO(files["series.zip"])) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def no_slices(files: mutants.Files) -> list[str]:
    """Objects that say of themselves that they are pictures of another series, with no place in the patient."""
    said = {name: mutants.parsed(data) for name, data in files.items()}
    series = Counter(str(dataset.get("SeriesInstanceUID")) for dataset in said.values())
    nowhere = {name for name, one in said.items() if not one.get("ImagePositionPatient") and "Rows" in one}
    return [name for name in nowhere if series[str(said[name].get("SeriesInstanceUID"))] == 1 < len(files)]


def disagreement(volume: Volume, files: mutants.Files, before: mutants.Files) -> str:
    """What the volume doesn't share with what the files state; empty where they agree."""
    blank = [name for name, data in files.items() if "Rows" not in mutants.parsed(data)]
    if blank:
        return f"pydicom finds no image in {blank[0]}"
    slices = volume.array.shape[3]
    found = []
    for way in (slices, -slices):
        stated = [plane for name, data in files.items() for plane in planes(name, data, way)]
        found.append(_difference(volume, stated, {name for name in files if files[name] != before.get(name)}))
    return "" if "" in found else found[0]


def _difference(volume: Volume, stated: list[Plane], changed: set[str]) -> str:
    slices = volume.array.shape[3]
    colours = 3 if volume.channels[0].name == "red" else 1
    if len(stated) * colours != len(volume.array) * slices:
        return f"{len(stated)} planes are stated, and {len(volume.array)} x {slices} were read"
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    step, left = float(np.linalg.norm(lps[:3, 2])), list(stated)
    for number in range(len(stated)):
        channel, k = divmod(number, slices)
        array = volume.array[channel * colours : (channel + 1) * colours, :, :, k]
        due = lps[:3, :3] @ [0, 0, k] + lps[:3, 3]
        near = [one for one in left if np.linalg.norm(one.position - due) < 0.15 + 0.02 * step]
        fitting = [one for one in near if _fits(one, lps, array)]
        if not fitting:
            return f"slice {k} of channel {channel}: no object states it"
        same = [one for one in fitting if one.pixels is not None and _shows(one, array)]
        other = [one for one in fitting if one.name in changed]
        if not same and not other:
            return f"slice {k} of channel {channel} holds other voxels than its file"
        left.remove((same or other)[0])
    return ""


def _fits(plane: Plane, lps, array) -> bool:
    ways = np.array([lps[:3, 0] / plane.spacing[1], lps[:3, 1] / plane.spacing[0]])
    return plane.shape == array.shape[:0:-1] and bool(np.abs(ways - plane.ways).max() < 5e-3)


def _shows(plane: Plane, array) -> bool:
    pixels = plane.pixels if plane.pixels.ndim == 3 else plane.pixels[..., None]
    return bool(np.allclose(np.moveaxis(array, 0, 2), pixels.swapaxes(0, 1), rtol=1e-5, atol=1e-4))


# -- The test


def attempt(folder: Path, files: mutants.Files, seed: tuple[mutants.Files, Volume], foreign: set) -> str:
    """Read a mutant every way; which of the allowed outcomes it has. Fails for any other."""
    before, volume = seed
    path = folder / "series.zip" if "series.zip" in files else folder
    found = survey([path], deep=True)
    judged = [stack.verdict.status for stack in found.stacks]
    for stack in found.stacks:
        assert "\n" not in stack.verdict.told
    try:
        read = read_dicom(path)
    except MedlightError as error:
        said = str(error)
        assert "\n" not in said
        assert folder.name in said
        assert not any(secret in said for secret in fake.SECRETS)
        assert judged != ["ok"], f"refused, and a survey says ok: {said}"
        return "refused"
    assert "ok" in judged, f"read, and a survey says {judged}"
    if np.array_equal(read.affine, volume.affine) and np.array_equal(read.array, volume.array):
        return "same"
    stated = members(files)
    own = {name: data for name, data in stated.items() if data not in foreign or data in before.values()}
    others = {name: data for name, data in stated.items() if name not in own}  # put in from elsewhere
    slices = {name: data for name, data in stated.items() if name not in no_slices(stated)}
    wrong = [disagreement(read, part, before) for part in (stated, own, others, slices) if part]
    assert "" in wrong, wrong
    moved = read.array.shape != volume.array.shape or np.abs(read.affine - volume.affine).max() > 1e-6
    return "as stated" if moved else "other values"


def rounds(seeds, folder: Path, count: int, start: int) -> Counter:
    """Mutants of every seed in turn; the outcomes by the kind of damage."""
    outcomes: Counter = Counter()
    beside = {name: files for name, (files, _) in seeds.items()}
    names, foreign = list(seeds), {data for files in beside.values() for data in files.values()}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        draw = random.Random(f"{start} {number}")
        name = names[number % len(names)]
        kind, files = mutants.mutant(draw, seeds[name][0], beside)
        place = lay(files, folder / f"{start}-{number}")
        began, worked = time.monotonic(), time.process_time()
        try:
            outcomes[kind, attempt(place, files, seeds[name], foreign)] += 1
        except BaseException as error:
            error.add_note(f"mutant {number} of {start}: {kind} of {name}")
            raise
        assert time.process_time() - worked < SECONDS, (kind, name, number)
        assert time.monotonic() - began < SECONDS_BY_CLOCK, (kind, name, number)
        for path in sorted(place.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY
    return outcomes


def test_mutants_give_the_same_volume_the_one_they_state_or_a_named_refusal(seeds, tmp_path):
    outcomes = rounds(seeds, tmp_path, 150, 1)
    assert {outcome for _, outcome in outcomes} >= {"same", "refused", "as stated"}


@pytest.mark.slow
@pytest.mark.parametrize("start", [2, 3, 4])
def test_many_mutants(seeds, tmp_path, start):
    rounds(seeds, tmp_path, 800, start)


@pytest.mark.parametrize("count", [44, pytest.param(440, marks=pytest.mark.slow)])
def test_good_series_beside_mutants_are_ok(seeds, tmp_path, capsys, count):
    """``data check`` of a tree of both: it ends, with a verdict for all, and the good ones' are what they were."""
    tree, names = tmp_path / "tree", list(seeds)
    for name in names:
        lay(renamed(name, seeds[name][0]), tree / "good" / name)
    alone = checked(tree / "good", capsys, 0)
    assert [entry["status"] for entry in alone.values()] == ["ok"] * len(names)
    beside = {name: files for name, (files, _) in seeds.items()}
    for number in range(count):
        draw = random.Random(f"beside {number}")
        _, files = mutants.mutant(draw, seeds[names[number % len(names)]][0], beside)
        lay(files, tree / draw.choice(("a", "z")) / str(number))
    both = checked(tree, capsys, 1)
    assert {key: both.get(key) for key in alone} == alone


def renamed(series: str, files: mutants.Files) -> mutants.Files:
    """The same series with UIDs of its own: it is no copy of any mutant."""
    made: mutants.Files = {}
    for name, data in files.items():
        dataset = mutants.parsed(data)
        dataset.SeriesInstanceUID = fake.uid("good", series)
        dataset.SOPInstanceUID = fake.uid("good", series, name)
        made[name] = mutants.written(dataset)
    return made


def checked(folder: Path, capsys, code: int) -> dict:
    """What ``data check --deep`` says of each series, by its id."""
    out = folder.parent / "found.json"
    assert main(["data", "check", str(folder), "--deep", "--workers", "1", "--json", str(out)]) == code
    capsys.readouterr()
    return {entry["id"]: entry for entry in json.loads(out.read_text())}
