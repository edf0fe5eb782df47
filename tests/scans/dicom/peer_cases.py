"""Series to cross-check: real ones below a folder, pydicom's, and fake ones with what other readers ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medlight.scans.dicom.frames import Stack
from medlight.scans.dicom.survey import survey
from tests.data import fake_dicom as fake

Cases = Iterator[tuple[str, Stack]]


def of_data(root: Path) -> Cases:
    """All series below a folder, named by their folder, or by their file where they have one."""
    for stack in survey([root]).stacks:
        files = {frame.place.path for frame in stack.frames}
        file = stack.frames[0].place.path
        yield str((file.parent if len(files) > 1 else file).relative_to(root)), stack


def of_pydicom() -> Cases:
    """pydicom-data's and pydicom's own test files: each for itself, for they say that they are of one series."""
    import data_store
    import pydicom

    tests = Path(pydicom.__file__).parent / "data/test_files"
    for folder in (Path(data_store.__file__).parent / "data", tests):
        for file in sorted(filter(Path.is_file, folder.iterdir())):
            yield from ((file.name, stack) for stack in survey([file]).stacks)
    yield from of_data(tests / "dicomdirtests")


TIMES = {"RepetitionTime": 2000.0, "EchoTime": 30.0}  # without which dicom2nifti reads no 4D series
DIRECTIONS = {"axial": fake.AXIAL, "sagittal": fake.SAGITTAL, "coronal": fake.CORONAL, "oblique": fake.OBLIQUE}


def dimensions(dataset: Dataset) -> Dataset:
    """Add the Multi-frame Dimension module (PS3.3 C.7.6.17): place in the stack, then time."""
    organization = fake.uid("dimensions")
    dataset.DimensionOrganizationSequence = fake.item(DimensionOrganizationUID=organization)
    dataset.DimensionIndexSequence = []
    for pointer in (0x00209056, 0x00209057, 0x00209128):
        keys = {"DimensionIndexPointer": pointer, "FunctionalGroupPointer": 0x00209111}
        dataset.DimensionIndexSequence += fake.item(DimensionOrganizationUID=organization, **keys)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        content = frame.FrameContentSequence[0]
        content.DimensionIndexValues = [1, content.InStackPositionNumber, content.TemporalPositionIndex]
    return dataset


def in_order(dataset: Dataset) -> Dataset:
    """Store the frames of an enhanced object by time, then place, as most scanners do."""
    groups = dataset.PerFrameFunctionalGroupsSequence
    order = sorted(range(len(groups)), key=lambda at: groups[at].FrameContentSequence[0].DimensionIndexValues[::-1])
    values = np.frombuffer(dataset.PixelData, np.uint16).reshape(len(groups), -1)
    dataset.PixelData = values[order].tobytes()
    dataset.PerFrameFunctionalGroupsSequence = [groups[at] for at in order]
    return dataset


def mosaic(grid: fake.Grid, channel: int = 0) -> Dataset:
    """A mosaic with what dicom2nifti asks for besides: Siemens' protocol."""
    protocol = [f"sSliceArray.lSize = {grid.shape[2]}"]
    protocol += [f"sSliceArray.asSlice[{k}].sPosition.dTra = {k * grid.step}" for k in range(grid.shape[2])]
    time = {"AcquisitionNumber": channel + 1, "AcquisitionTime": f"1011{12 + 2 * channel}.5"}
    matrix = [grid.shape[0], 0, 0, grid.shape[1]]
    made = fake.mosaic(grid, channel, AcquisitionMatrix=matrix, **time, **TIMES)
    text = "\n".join(["### ASCCONV BEGIN ###", *protocol, "### ASCCONV END ###", ""]).encode()
    made.private_block(0x29, "SIEMENS CSA HEADER").add_new(0x20, "OB", text + b"\0" * (len(text) % 2))
    return made


def slopes() -> list[Dataset]:
    """Each slice has a slope and an intercept of its own."""
    return [fake.plane(fake.Grid(), k, RescaleSlope=1 + k, RescaleIntercept=-1024 + 10 * k) for k in range(6)]


def made() -> Iterator[tuple[str, list[Dataset]]]:
    """Fake series in all directions and both ways, enhanced objects, mosaics, and 4D ones."""
    for name, orientation in DIRECTIONS.items():
        for way in (2.5, -2.5):
            grid = fake.Grid(orientation=orientation, step=way)
            end = f"{name}{'' if way > 0 else '-down'}"
            yield f"ct-{end}", fake.series(grid)
            yield f"enhanced-{end}", [in_order(dimensions(fake.enhanced(grid)))]
            grid = fake.Grid((10, 12, 7), orientation=orientation, step=way)
            yield f"mosaic-{end}", [mosaic(grid)]
            yield f"mosaics-{end}", [mosaic(grid, channel) for channel in range(3)]
    yield "ct-slopes", slopes()
    yield "enhanced-ct", [in_order(dimensions(fake.enhanced(modality="CT")))]
    yield "enhanced-each", [in_order(dimensions(fake.enhanced(shared=False)))]
    yield "enhanced-shuffled", [dimensions(fake.enhanced())]
    yield "enhanced-shuffled-each", [dimensions(fake.enhanced(shared=False))]
    yield "enhanced-shuffled-bare", [fake.enhanced(shared=False)]
    yield "enhanced-b", [in_order(dimensions(fake.enhanced(b_values=(0, 500, 1000))))]
    yield "enhanced-shuffled-b", [dimensions(fake.enhanced(b_values=(0, 500, 1000)))]
    for how in ("temporal", "acquisition", "trigger", "time"):
        yield f"4d-{how}", fake.by_time(how=how, **TIMES)
    yield "4d-backwards", fake.by_time(**TIMES)
    yield "4d-echo", fake.by_echo(RepetitionTime=2000.0)
    yield "4d-b", fake.by_b_value(**TIMES)


def of_fakes(folder: Path) -> Cases:
    """InstanceNumbers run with place and time, but for the one that is to run backwards."""
    for name, datasets in made():
        (stack,) = survey([fake.write(datasets, folder / name, reverse="backwards" in name)]).stacks
        assert stack.verdict.status == "ok", (name, stack.verdict)
        yield name, stack


def phantom(points: np.ndarray) -> np.ndarray:
    """A smooth body; points: ``(..., 3)`` in RAS millimetres."""
    x, y, z = np.moveaxis(points, -1, 0)
    return 150 * np.cos(x / 13) - 200 * np.sin(y / 17 - 0.3) + 120 * np.sin(z / 11)


def points(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Of the voxels of a grid, ``(I, J, K, 3)`` in millimetres."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def leaning(degrees: float, upright: bool) -> list[Dataset]:
    """A tilted series of the phantom. upright: the table rises, and slices stay; else the gantry leans, as in life."""
    angle = np.radians(degrees)
    leant = ((1.0, 0.0, 0.0), (0.0, float(np.cos(angle)), float(-np.sin(angle))))
    grid = fake.Grid(
        (60, 64, 12), orientation=fake.AXIAL if upright else leant, degrees=degrees if upright else -degrees
    )
    values = np.rint(phantom(points((64, 60, 12), fake.truth(grid)[1])) + 1024).astype(np.int16)
    made = fake.series(grid, RescaleSlope=1, RescaleIntercept=-1024, PixelRepresentation=1)
    for index, dataset in enumerate(made):
        dataset.PixelData = values[:, :, index].T.tobytes()
    return made
