"""Every series that is read as ``ok``, against other readers: what differs is listed with who is right, and why.

A difference that isn't listed fails, and so does one that is listed and gone. ``mends`` shows that the reason given is
the whole reason: with them, theirs is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medlight.scans.dicom.load import load, read_dicom
from medlight.scans.dicom.mend import Mends
from tests.data import fake_dicom as fake
from tests.scans.dicom import peers
from tests.scans.dicom.peer_cases import (
    Cases,
    dimensions,
    in_order,
    leaning,
    mosaic,
    of_data,
    of_fakes,
    of_pydicom,
    phantom,
    points,
)
from tests.scans.dicom.peers import Read


@dataclass(frozen=True)
class Difference:
    """What peers make of series (patterns of names) that we make something else of; the first that fits a series holds.

    what: ``refused``, ``volumes`` (more or fewer than one), ``shape``, ``voxels``, ``affine``. right: who is.
    mends: what the reason given makes of theirs; none where nothing can be made of it.
    """

    series: str
    peer: str
    what: str
    right: Literal["medlight", "either"]
    why: str
    mends: tuple[Callable[[Read, Read], Read], ...] = ()

    def of(self, series: str, peer: str) -> bool:
        return peer in self.peer.split() and any(fnmatch(series, pattern) for pattern in self.series.split())


Outcomes = dict[tuple[str, str], tuple[str, str]]

FEW = "reads series of four slices and more"
NO_PICTURES = "reads no picture that has no place"
NO_PLACE = "the object has no place (no Image Plane module): it centres the picture, our first pixel lies at 0"
MONOCHROME1 = "MONOCHROME1, where the least is white (PS3.3 C.7.6.3.1.2), is left as it is"
FILM = "pictures of one plane at several times (Frame Time, PS3.3 C.7.6.5) are slices 1 mm apart to it"
PALETTE = "gives indices of the palette, and no palette (PS3.3 C.7.6.3.1.5)"
HIGH_BYTE = "keeps 8 of the 16 bits that the palette's descriptor says (PS3.3 C.7.6.3.1.5)"
DOSE = "Dose Grid Scaling (3004,000E) is left out (PS3.3 C.8.8.3)"
NO_TIMES = "knows no time: all planes of all times are slices of one volume"
BY_NUMBER = "orders times by InstanceNumber; Temporal Position Identifier (0020,0100) and the clock say otherwise"
JPEG = "its decoder of lossy JPEG is up to 7 of 255 off ours and ITK's, which are the same (a few units are allowed)"

# Below the folder of real scans.
DATA = [
    Difference("dcmqi/* rt_utils/*", "dicom2nifti", "refused", "medlight", FEW),
    Difference("highdicom/dx_image.dcm", "dicom2nifti", "refused", "medlight", NO_PICTURES),
    Difference(
        "dcmqi/segmentations/ct-3slice rt_utils/mock_data",
        "dcm2niix SimpleITK",
        "voxels",
        "medlight",
        "padding (0028,0120), which was not measured (PS3.3 C.7.5.1.1.2), is -3024 HU: less than nothing",
        (peers.unpadded,),
    ),
    Difference(
        "generic/rgb/001",
        "dicom2nifti",
        "shape",
        "medlight",
        "adds a fourth channel, of opacity, where RGB has three samples (PS3.3 C.7.6.3.1.2)",
        (peers.opaque,),
    ),
    Difference(
        "highdicom/dx_image.dcm",
        "dcm2niix",
        "voxels, affine",
        "medlight",
        f"{MONOCHROME1}; {NO_PLACE}",
        (peers.turned, peers.unplaced),
    ),
]

FAKES = [
    Difference(
        "mosaic-* mosaics-*",
        "SimpleITK",
        "shape",
        "medlight",
        "a mosaic is one picture to it, of all tiles (NumberOfImagesInMosaic in Siemens' CSA header)",
        (peers.pieces,),
    ),
    Difference(
        "mosaic-*-down mosaics-*-down",
        "dicom2nifti",
        "affine",
        "medlight",
        "turns slices that go against the normal round, and leaves the place of the first tile to what was the "
        "last: 6 slices off. dcm2niix and nibabel's MosaicWrapper say what we do",
        (peers.six_lower,),
    ),
    Difference(
        "enhanced-b enhanced-shuffled*",
        "dicom2nifti",
        "refused",
        "medlight",
        "takes the order in which frames are stored for that of slices, and refuses the steps; each frame says its "
        "place (PS3.3 C.7.6.16.2.3)",
    ),
    Difference("enhanced-b enhanced-shuffled-b", "SimpleITK", "shape", "medlight", NO_TIMES, (peers.pieces,)),
    Difference(
        "enhanced-shuffled*",
        "SimpleITK",
        "voxels, affine",
        "medlight",
        "planes as they are stored, voxels of 1 mm; each frame says its place (PS3.3 C.7.6.16.2.3)",
        (peers.pieces,),
    ),
    Difference(
        "enhanced-shuffled-bare",
        "dcm2niix",
        "voxels, affine",
        "medlight",
        "sorts by Dimension Index Values alone (PS3.3 C.7.6.17), and here are none; each frame says its place",
        (peers.pieces,),
    ),
    Difference("4d-*", "SimpleITK", "shape", "medlight", NO_TIMES, (peers.pieces,)),
    Difference("4d-backwards", "dcm2niix dicom2nifti", "voxels", "medlight", BY_NUMBER, (peers.reordered,)),
    Difference(
        "4d-echo",
        "dcm2niix",
        "volumes",
        "either",
        "writes a file for each echo time, where we have a channel",
        (peers.reordered,),
    ),
    Difference(
        "4d-b",
        "dcm2niix dicom2nifti",
        "voxels",
        "either",
        "gradients of one b-value that no time tells apart: ordered by InstanceNumber, and by direction here",
        (peers.reordered,),
    ),
]

# pydicom's and pydicom-data's.
PICTURES = [
    Difference("eCT* rtdose*", "dicom2nifti", "refused", "medlight", FEW),
    Difference("[!9]*", "dicom2nifti", "refused", "medlight", NO_PICTURES),
    Difference(
        "RG*", "dcm2niix", "voxels, affine", "medlight", f"{MONOCHROME1}; {NO_PLACE}", (peers.turned, peers.unplaced)
    ),
    Difference(
        "OBXXXX1A_expb_2frame.dcm OBXXXX1A_expb.dcm",
        "dcm2niix",
        "shape",
        "medlight",
        f"{PALETTE}; bytes in big endian words are not swapped (PS3.5 A.3)",
        (peers.pairs_swapped, peers.film, peers.coloured, peers.unplaced),
    ),
    Difference(
        "OBXXXX1A_*2frame.dcm",
        "dcm2niix",
        "shape",
        "medlight",
        f"{PALETTE}; {FILM}",
        (peers.film, peers.coloured, peers.unplaced),
    ),
    Difference(
        "OBXXXX1A_*2frame.dcm", "SimpleITK", "shape", "medlight", f"{HIGH_BYTE}; {FILM}", (peers.film, peers.deep)
    ),
    Difference(
        "OBXXXX1A* examples_palette.dcm gdcm-US*",
        "dcm2niix",
        "shape",
        "medlight",
        f"{PALETTE}; {NO_PLACE}",
        (peers.coloured, peers.unplaced),
    ),
    Difference("OBXXXX1A* examples_palette.dcm", "SimpleITK", "voxels", "medlight", HIGH_BYTE, (peers.deep,)),
    Difference("color3d* examples_ybr*", "SimpleITK", "shape", "medlight", FILM, (peers.film,)),
    Difference(
        "color3d* examples_ybr*",
        "dcm2niix",
        "shape",
        "medlight",
        f"{FILM}; {NO_PLACE}; {JPEG}",
        (peers.film, peers.unplaced, peers.seven_off),
    ),
    Difference("JPGL* US1* color-* ExplVR* examples*", "dcm2niix", "affine", "either", NO_PLACE, (peers.unplaced,)),
    Difference(
        "rtdose*",
        "dcm2niix",
        "voxels, affine",
        "medlight",
        f"{DOSE}, and Grid Frame Offset Vector (3004,000C), which says 5 mm (PS3.3 C.8.8.3.2)",
        (peers.dose, peers.five_apart),
    ),
    Difference(
        "rtdose_expb.dcm",
        "SimpleITK",
        "voxels",
        "medlight",
        f"{DOSE}; of big endian numbers of 32 bits (PS3.5 A.3) the halves are swapped",
        (peers.halves_swapped, peers.dose),
    ),
    Difference("rtdose*", "SimpleITK", "voxels", "medlight", DOSE, (peers.dose,)),
    Difference(
        "77654033/CR*",
        "dcm2niix",
        "affine",
        "medlight",
        f"Imager Pixel Spacing (0018,1164), 0.1 mm, is not read; {NO_PLACE}",
        (peers.tenth, peers.unplaced),
    ),
    Difference(
        "77654033/CR*",
        "SimpleITK",
        "voxels",
        "medlight",
        "turns optical density (Rescale Type OD, PS3.3 C.11.1.1.2) as if it were grey; MONOCHROME1 is of its display",
        (peers.turned,),
    ),
]


def compared(rows: list[Difference], cases: Cases, folder: Path) -> Outcomes:
    """For each series and peer, what differs, and what does still once theirs is mended as the table says."""
    found: Outcomes = {}
    for number, (name, stack) in enumerate(cases):
        if stack.kind != "image" or stack.verdict.status != "ok":
            continue
        volume = load(stack)
        files = list(dict.fromkeys(frame.place.path for frame in stack.frames))
        alone = peers.gathered(files, folder / f"{number}")
        for peer, reader in peers.READERS.items():
            row = next((row for row in rows if row.of(name, peer)), None)
            try:
                theirs = reader(alone, folder / f"{number} {peer}")
            except Exception:  # whatever a peer raises
                found[name, peer] = "refused", ""
            else:
                found[name, peer] = judged(theirs, Read(volume.array, volume.affine), row)
    return found


def judged(theirs: list[Read], ours: Read, row: Difference | None) -> tuple[str, str]:
    one = peers.aligned(Read(np.concatenate([read.array for read in theirs]), theirs[0].affine), ours)
    what = "volumes" if len(theirs) > 1 else peers.difference(one, ours)
    if row is None or not row.mends:
        return what, ""
    for mend in row.mends:
        one = mend(one, ours)
    return what, peers.difference(one, ours)


@pytest.fixture(scope="session")
def data(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return compared(DATA, of_data(data_root / "dicom"), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return compared(FAKES, of_fakes(tmp_path_factory.mktemp("fake")), tmp_path_factory.mktemp("fakes"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return compared(PICTURES, of_pydicom(), tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("peer", peers.READERS)
@pytest.mark.parametrize(
    ("group", "rows", "count"),
    [
        ("data", DATA, 20),
        ("fakes", FAKES, 45),
        pytest.param("pictures", PICTURES, 37, marks=pytest.mark.slow),
    ],
)
def test_what_differs_is_listed(
    request: pytest.FixtureRequest, group: str, rows: list[Difference], count: int, peer: str
) -> None:
    outcomes = request.getfixturevalue(group)
    found = {series: what for (series, by), (what, _) in outcomes.items() if by == peer}
    left = {series: what for (series, by), (_, what) in outcomes.items() if by == peer and what}
    due = {series: next((row.what for row in rows if row.of(series, peer)), "") for series in found}
    assert {k: v for k, v in found.items() if v != due[k]} == {k: v for k, v in due.items() if v != found[k]}
    assert left == {}
    first = {next((row for row in rows if row.of(series, peer)), None) for series in found}
    assert [row for row in rows if peer in row.peer.split() and row not in first] == []
    assert len(found) >= count


@pytest.mark.parametrize("seed", range(10))
def test_any_direction_is_the_same_to_all(tmp_path: Path, seed: int) -> None:
    """Slices in a random direction, up or down, of voxels with three different sides."""
    rng = np.random.default_rng(seed)
    along_row, along_column, _ = Rotation.random(rng=rng).as_matrix().tolist()
    *spacing, step = rng.uniform(0.2, 3, 3).round(4).tolist()
    origin = tuple(rng.uniform(-300, 300, 3).tolist())
    grid = fake.Grid((10, 12, 7), tuple(spacing), step * (-1) ** seed, (along_row, along_column), origin)
    kinds = {
        "classic": fake.series(grid),
        "enhanced": in_order(dimensions(fake.enhanced(grid))),
        "mosaic": mosaic(grid),
    }
    for kind, datasets in kinds.items():
        series = fake.write(datasets, tmp_path / kind)
        volume = read_dicom(series)
        ours = Read(volume.array, volume.affine)
        alone = peers.gathered(sorted(series.iterdir()), tmp_path / f"{kind} in")
        for peer in ["dcm2niix"] if kind == "mosaic" else peers.READERS:  # the others err in mosaics, see above
            (theirs,) = peers.READERS[peer](alone, tmp_path / f"{kind} {peer}")
            assert peers.difference(peers.aligned(theirs, ours), ours) == "", (kind, peer)


def deskewed(folder: Path, out: Path) -> tuple[Read, Read]:
    """A tilted series as dcm2niix corrects it, with its axes in the order of ours, and ours."""
    volume = read_dicom(folder, Mends(tilt="deskew"))
    ours = Read(volume.array, volume.affine)
    files = peers.run_dcm2niix(peers.gathered(sorted(folder.iterdir()), out / "in"), out / "out")
    (corrected,) = [file for file in files if "_Tilt" in file.stem]
    return peers.aligned(peers.of_nifti(corrected), ours), ours


def rows_that_differ(theirs: Read, ours: Read) -> list[int]:
    """For each slice, how many of its rows have voxels that differ."""
    return (theirs.array != ours.array).any(axis=(0, 1)).sum(axis=0).tolist()


def test_a_real_tilt_is_deskewed_as_by_dcm2niix(data_root: Path, tmp_path: Path) -> None:
    """The same voxels but for one row at each end of a slice, where it mixes less of the air beside into them."""
    theirs, ours = deskewed(data_root / "dicom/failing/gantrytilting/001", tmp_path)
    assert ours.array.shape == (1, 512, 521, 4)
    assert peers.difference(theirs, ours) == "voxels"
    assert rows_that_differ(theirs, ours) == [0, 2, 2, 2]


@pytest.mark.parametrize(
    ("degrees", "upright", "same"),
    [(15, False, True), (-15, True, True), (-15, False, False), (15, True, False)],
)
def test_tilts_either_way_are_right(tmp_path: Path, degrees: float, upright: bool, same: bool) -> None:
    """Ours is the phantom of 940 grey levels, but for rounding (which is 0.27).

    dcm2niix gives the same where slices lean one way, but for what it puts outside of them. Where they lean the other
    way it is off by a tenth of a pixel, and where it is the gantry that leans, by 5 mm along the head besides.
    """
    series = fake.write(leaning(degrees, upright), tmp_path / "series", reverse=False)
    theirs, ours = deskewed(series, tmp_path)
    inside = ours.array > -1000
    inside &= theirs.array > -400
    inside[:, :, :8], inside[:, :, -8:] = False, False
    errors = []
    for one in (ours, theirs):
        error = np.abs(one.array[0] - phantom(points(one.array.shape[1:], one.affine)))
        errors.append(float(np.median(error[inside[0]])))
    assert inside.mean() > 0.7
    assert errors[0] < 0.3
    assert abs(errors[1] - errors[0]) < 0.001 if same else errors[1] > 1
