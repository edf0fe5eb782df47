"""Fake DICOM: every voxel's value says where it is and in which channel, so that a shuffled volume can't pass as right.

The functions give pydicom Datasets in geometric order (channel by channel, then slice by slice); ``write`` puts them
into files whose names say nothing and whose InstanceNumbers run the other way. ``truth`` gives voxels and affine from
the arguments alone.
"""

from __future__ import annotations

import copy
import random
import struct
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
OBLIQUE = ((0.96, 0.28, 0.0), (-0.224, 0.768, -0.6))

SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "US": "1.2.840.10008.5.1.4.1.1.3.1",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
    "SR": "1.2.840.10008.5.1.4.1.1.88.11",
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    "enhanced CT": "1.2.840.10008.5.1.4.1.1.2.1",
    "enhanced MR": "1.2.840.10008.5.1.4.1.1.4.1",
}
# Planted in every object; none of these words may turn up in anything that is kept.
IDENTITY = {
    "PatientName": "Doe^Jane^Zyzzyva",
    "PatientID": "PID-4815162342",
    "PatientBirthDate": "19700102",
    "OtherPatientNames": "Roe^Quixotic",
    "InstitutionName": "Sanatorium Elsewhere",
    "ReferringPhysicianName": "Strange^Stephen",
    "StationName": "STATION-XYZZY",
    "AccessionNumber": "ACC-271828",
    "StudyDescription": "Study of Jane Zyzzyva",
    "SeriesDescription": "Series of Jane Zyzzyva",
    "ProtocolName": "Protocol for Zyzzyva",
    "ImageComments": "Comment on Zyzzyva",
    "PatientComments": "Zyzzyva said so",
}
# What gives them away, wherever it turns up.
SECRETS = ("Zyzzyva", "Jane", "Doe^", "4815162342", "19700102", "Quixotic", "Sanatorium", "Strange", "XYZZY", "271828")


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a fake series lie, in DICOM's LPS and millimetres.

    shape: rows, columns, slices. spacing: between rows, between columns. step: between slices, along the normal.
    origin: centre of the first pixel of the first slice. degrees: gantry tilt, a shear along the columns.
    """

    shape: tuple[int, int, int] = (10, 12, 6)
    spacing: tuple[float, float] = (1.5, 0.75)
    step: float = 2.5
    orientation: tuple = AXIAL
    origin: tuple[float, float, float] = (-20.0, -30.5, 40.25)
    degrees: float = 0.0

    @property
    def stride(self) -> np.ndarray:
        """From one slice to the next."""
        along_row, along_column = np.asarray(self.orientation)
        shear = np.tan(np.radians(self.degrees)) * along_column
        return self.step * (np.cross(along_row, along_column) + shear)

    def position(self, index: float) -> np.ndarray:
        """Of the first pixel of a slice."""
        return np.asarray(self.origin) + index * self.stride


def uid(*parts: object) -> UID:
    """A UID that is a function of its parts."""
    return generate_uid(entropy_srcs=[str(part) for part in parts])


def pixels(index: int, shape: tuple[int, int], channel: int = 0) -> np.ndarray:
    """One slice's values, uint16: slice and channel can be told from any of them."""
    rows, columns = np.indices(shape)
    return (channel * 4096 + index * 64 + (rows * 7 + columns * 3) % 61).astype(np.uint16)


def truth(grid: Grid, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The array ``(C, I, J, K)`` and the affine to RAS that a right reader finds, by the arguments alone.

    I runs along the columns, J along the rows, K along the slices in the order they are made.
    """
    rows, columns, slices = grid.shape
    array = np.stack([np.stack([pixels(k, (rows, columns), c).T for k in range(slices)], -1) for c in range(channels)])
    along_row, along_column = np.asarray(grid.orientation)
    lps = np.eye(4)
    lps[:3, 0] = along_row * grid.spacing[1]
    lps[:3, 1] = along_column * grid.spacing[0]
    lps[:3, 2] = grid.stride
    lps[:3, 3] = grid.origin
    return array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def instance(values: np.ndarray | None, modality: str = "CT", series: str = "one", number: int = 1, **tags) -> Dataset:
    """One object: identity, UIDs, and pixels if given; ``tags`` are set last (None removes one)."""
    made = Dataset()
    made.SOPClassUID = SOP_CLASSES[modality]
    made.SOPInstanceUID = uid(series, modality, number, sorted(map(str, tags.items())))
    made.Modality = modality.split()[-1]
    made.StudyInstanceUID, made.SeriesInstanceUID = uid("study"), uid("series", series)
    made.FrameOfReferenceUID = uid("frame of reference")
    made.StudyDate, made.StudyTime, made.StudyID, made.SeriesNumber = "20200102", "101112", "1", 1
    made.InstanceNumber = number
    for keyword, value in IDENTITY.items():
        setattr(made, keyword, value)
    if modality in ("CT", "MR", "PT"):
        made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
    if values is not None:
        _set_pixels(made, values)
    for keyword, value in tags.items():
        if value is None and keyword in made:
            delattr(made, keyword)
        elif value is not None:
            setattr(made, keyword, value)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return made


def _set_pixels(made: Dataset, values: np.ndarray) -> None:
    made.Rows, made.Columns = values.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * values.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    made.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
    made["PixelData"].VR = "OW" if made.BitsAllocated > 8 else "OB"


def numbers(values) -> list[float]:
    """Decimal strings hold 16 characters."""
    return [round(float(value), 9) for value in np.ravel(values)]


def plane(grid: Grid, index: int, place: float | None = None, channel: int = 0, **tags) -> Dataset:
    """One slice of a series; ``place``: where it lies, counted in steps, if not at its index."""
    modality = tags.pop("modality", "CT")
    where = {
        "ImagePositionPatient": numbers(grid.position(index if place is None else place)),
        "ImageOrientationPatient": numbers(grid.orientation),
        "PixelSpacing": numbers(grid.spacing),
        "SliceThickness": round(grid.step, 6),
    }
    number = tags.pop("number", 1 + index + channel * grid.shape[2])
    return instance(pixels(index, grid.shape[:2], channel), modality, number=number, **(where | tags))


def series(grid: Grid | None = None, channel: int = 0, **tags) -> list[Dataset]:
    """A regular series."""
    grid = grid or Grid()
    return [plane(grid, index, channel=channel, **tags) for index in range(grid.shape[2])]


def without(datasets: list[Dataset], *missing: int) -> list[Dataset]:
    """Leave slices out: a gap where they lie inside."""
    return [dataset for index, dataset in enumerate(datasets) if index not in missing]


def uneven(grid: Grid | None = None, **tags) -> list[Dataset]:
    """Each step is longer than the one before."""
    grid = grid or Grid()
    return [plane(grid, index, place=index + 0.1 * index**2, **tags) for index in range(grid.shape[2])]


def tilted(degrees: float = 15.0, grid: Grid | None = None, **tags) -> list[Dataset]:
    """A gantry tilt: slices are shifted along the columns, which stay at right angles to the normal."""
    return series(replace(grid or Grid(), degrees=degrees), **tags)


def doubled(datasets: list[Dataset], at: int = 2) -> list[Dataset]:
    """The slice ``at`` twice, as another object."""
    again = copy.deepcopy(datasets[at])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = uid(again.SOPInstanceUID, "again")
    again.InstanceNumber = len(datasets) + 1
    return [*datasets, again]


def two_orientations(second: int = 6, **tags) -> list[Dataset]:
    """An axial and a sagittal stack of ``second`` slices in one series."""
    other = Grid(shape=(10, 12, second), orientation=SAGITTAL)
    return [*series(**tags), *(plane(other, k, number=100 + k, **tags) for k in range(second))]


def two_shapes(second: int = 6, **tags) -> list[Dataset]:
    """Slices of 10x12 and, further up, ``second`` slices of 8x9 in one series."""
    other = Grid(shape=(8, 9, second), origin=(-20.0, -30.5, 140.25))
    return [*series(**tags), *(plane(other, k, number=100 + k, **tags) for k in range(second))]


def two_volumes(**tags) -> list[Dataset]:
    """Two slabs in one series, no whole number of steps apart, told apart by AcquisitionNumber."""
    first = series(AcquisitionNumber=1, **tags)
    other = Grid(origin=(-10.0, -30.5, 91.0))
    return [*first, *(plane(other, k, number=100 + k, AcquisitionNumber=2, **tags) for k in range(6))]


def by_time(frames: int = 3, how: str = "temporal", grid: Grid | None = None, **tags) -> list[Dataset]:
    """A 4D series. how: temporal (position identifier), acquisition (number), trigger (time), time (of acquisition)."""
    found = []
    tags = {"modality": "MR"} | tags
    for frame in range(frames):
        for slice_ in series(grid, channel=frame, **tags):
            late = 2.0 * frame + 0.05 * slice_.InstanceNumber  # each slice a little later
            match how:
                case "temporal":
                    slice_.TemporalPositionIdentifier = frame + 1
                    slice_.AcquisitionTime = f"1011{12 + late:09.6f}"
                case "acquisition":
                    slice_.AcquisitionNumber = frame + 1
                case "trigger":
                    slice_.TriggerTime = round(40.0 * frame + 0.1 * (slice_.InstanceNumber % 3), 3)
                case "time":
                    slice_.AcquisitionTime = f"1011{12 + late:09.6f}"
            found.append(slice_)
    return found


def by_b_value(values=(0.0, 500.0, 1000.0), grid: Grid | None = None, **tags) -> list[Dataset]:
    """A diffusion series by the standard's tags; every b-value above 0 has a gradient along x and one along y."""
    found, channel = [], 0
    for value in values:
        for gradient in [None] if value == 0 else [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)]:
            extra = {} if gradient is None else {"DiffusionGradientOrientation": list(gradient)}
            found += series(grid, channel=channel, modality="MR", DiffusionBValue=value, **extra, **tags)
            channel += 1
    return found


def by_echo(times=(4.6, 9.2), grid: Grid | None = None, **tags) -> list[Dataset]:
    """A multi-echo series."""
    return [s for c, t in enumerate(times) for s in series(grid, channel=c, modality="MR", EchoTime=t, **tags)]


def item(**tags) -> Sequence:
    """A sequence of one item."""
    made = Dataset()
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    return Sequence([made])


def enhanced(
    grid: Grid | None = None, modality: str = "MR", shared: bool = True, b_values: tuple = (), seed: int = 0, **tags
) -> Dataset:
    """An enhanced multi-frame object, its frames in random order.

    shared: orientation and spacing stand in the shared functional groups, else in each frame's. b_values: one for each
    channel.
    """
    grid = grid or Grid()
    keys = [(channel, index) for channel in range(max(1, len(b_values))) for index in range(grid.shape[2])]
    random.Random(seed).shuffle(keys)
    common = {
        "PlaneOrientationSequence": item(ImageOrientationPatient=numbers(grid.orientation)),
        "PixelMeasuresSequence": item(PixelSpacing=numbers(grid.spacing), SliceThickness=round(grid.step, 6)),
    }
    frames = []
    for channel, index in keys:
        groups = {"PlanePositionSequence": item(ImagePositionPatient=numbers(grid.position(index)))}
        stack = {"StackID": "1", "InStackPositionNumber": index + 1, "TemporalPositionIndex": channel + 1}
        groups["FrameContentSequence"] = item(**stack)
        if b_values:
            groups["MRDiffusionSequence"] = item(DiffusionBValue=float(b_values[channel]))
        frames += item(**groups, **({} if shared else copy.deepcopy(common)))
    values = np.stack([pixels(index, grid.shape[:2], channel) for channel, index in keys])
    made = instance(values, f"enhanced {modality}", ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], **tags)
    made.NumberOfFrames = len(keys)
    made.SharedFunctionalGroupsSequence = item(**(common if shared else {}))
    made.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return made


def csa_header(**tags: tuple[str, list[str]]) -> bytes:
    """A Siemens CSA2 header: name, value representation and values (https://nipy.org/nibabel/dicom/siemens_csa.html)."""
    parts = [b"SV10\x04\x03\x02\x01", struct.pack("<2I", len(tags), 77)]
    for name, (vr, values) in tags.items():
        parts.append(struct.pack("<64si4s3i", name.encode(), len(values), vr.encode(), 0, len(values), 77))
        for text in values:
            data = text.encode() + b"\0"
            parts.append(struct.pack("<4i", len(data), len(data), 77, len(data)))
            parts.append(data + b"\0" * (-len(data) % 4))
    return b"".join(parts)


def mosaic(grid: Grid | None = None, channel: int = 0, **tags) -> Dataset:
    """A Siemens mosaic: slices as tiles; its position is that of a picture as big as the mosaic, about its centre."""
    grid = grid or Grid(shape=(10, 12, 7))
    rows, columns, slices = grid.shape
    side = int(np.ceil(np.sqrt(slices)))
    picture = np.zeros((side * rows, side * columns), np.uint16)
    for index in range(slices):
        row, column = index // side * rows, index % side * columns
        picture[row : row + rows, column : column + columns] = pixels(index, (rows, columns), channel)
    along_row, along_column = np.asarray(grid.orientation)
    shift = (
        along_row * grid.spacing[1] * (side - 1) * columns / 2 + along_column * grid.spacing[0] * (side - 1) * rows / 2
    )
    where = {
        "ImagePositionPatient": numbers(np.asarray(grid.origin) - shift),
        "ImageOrientationPatient": numbers(grid.orientation),
        "PixelSpacing": numbers(grid.spacing),
        "SliceThickness": round(grid.step * 0.8, 6),
        "SpacingBetweenSlices": round(abs(grid.step), 6),
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
        "Manufacturer": "SIEMENS",
    }
    made = instance(picture, "MR", number=tags.pop("number", 1 + channel), **(where | tags))
    normal = np.sign(grid.step) * np.cross(along_row, along_column)
    block = made.private_block(0x29, "SIEMENS CSA HEADER", create=True)
    header = csa_header(
        NumberOfImagesInMosaic=("US", [str(slices)]),
        AcquisitionMatrixText=("SH", [f"{rows}p*{columns}"]),
        SliceNormalVector=("FD", [f"{part:.8f}" for part in normal]),
    )
    block.add_new(0x10, "OB", header + b"\0" * (len(header) % 2))
    return made


def localizer(count: int = 3, **tags) -> list[Dataset]:
    """Pictures for planning: one in each of three directions."""
    grids = [Grid(orientation=orientation, shape=(10, 12, 1)) for orientation in (AXIAL, SAGITTAL, CORONAL)]
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return [plane(grids[n % 3], n // 3, number=n + 1, ImageType=kind, **tags) for n in range(count)]


def secondary_capture(number: int = 1, **tags) -> Dataset:
    """A picture of a screen, with no place in the patient."""
    return instance(pixels(0, (10, 12)), "OT", series="screen", number=number, ConversionType="WSD", **tags)


def radiograph(**tags) -> Dataset:
    """A digital radiograph with the spacing of its detector."""
    spacing = {"ImagerPixelSpacing": [0.2, 0.1], "ViewPosition": "PA"}
    return instance(pixels(3, (20, 16)), "DX", series="chest", **(spacing | tags))


def cine(frames: int = 4, **tags) -> Dataset:
    """An ultrasound film: many frames of one plane, with no place in the patient."""
    values = np.stack([pixels(0, (10, 12), frame) for frame in range(frames)])
    return instance(values, "US", series="film", NumberOfFrames=frames, FrameTime=40.0, **tags)


def report(**tags) -> Dataset:
    """A structured report: no picture."""
    return instance(None, "SR", series="report", **tags)


def write(datasets: Dataset | list[Dataset], folder: Path, seed: int = 0, reverse: bool = True) -> Path:
    """Write files with random names in random order; InstanceNumber runs the other way unless told not to."""
    listed = list(datasets) if isinstance(datasets, list) else [datasets]
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"{seed} {folder.name}")
    order = list(range(len(listed)))
    draw.shuffle(order)
    for index in order:
        made = copy.copy(listed[index])
        if reverse and len(listed) > 1:
            made.InstanceNumber = len(listed) - index
        save(made, folder / f"{draw.getrandbits(48):012x}")
    return folder


def save(dataset: Dataset, path: Path) -> Path:
    """Write one object as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def zipped(folder: Path, archive: Path) -> Path:
    """A folder as a zip."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                opened.write(file, file.relative_to(folder))
    return archive


def with_dicomdir(datasets: list[Dataset], folder: Path) -> Path:
    """A file set as on a CD: files in sub-folders and a DICOMDIR; returns the DICOMDIR."""
    files = FileSet()
    for dataset in datasets:
        files.add(dataset)
    files.write(folder)
    return folder / "DICOMDIR"


def scanner_header(dataset: Dataset) -> Dataset:
    """Add what a scanner writes beside what matters: some 90 elements, many of them private, and sequences."""
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = dataset.SOPClassUID, uid("referenced")
    dataset.ReferencedImageSequence = Sequence([copy.deepcopy(reference) for _ in range(3)])
    dataset.ReferencedStudySequence = Sequence([copy.deepcopy(reference)])
    dataset["ReferencedImageSequence"].is_undefined_length = True
    texts = "Manufacturer ManufacturerModelName SoftwareVersions DeviceSerialNumber BodyPartExamined FilterType"
    for keyword in texts.split():
        setattr(dataset, keyword, keyword.upper()[:16])
    amounts = "KVP DataCollectionDiameter ReconstructionDiameter DistanceSourceToDetector DistanceSourceToPatient"
    for keyword in (*amounts.split(), "TableHeight", "WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope"):
        setattr(dataset, keyword, "120.5")
    dataset.AcquisitionDate, dataset.AcquisitionTime = "20200102", "101112.123456"
    dataset.ContentDate, dataset.ContentTime = "20200102", "101113.5"
    for group, creator in ((0x0019, "ACME STATION 01"), (0x0043, "ACME PARAMETERS"), (0x0045, "ACME HELIOS")):
        block = dataset.private_block(group, creator, create=True)
        for number in range(20):
            block.add_new(number, "DS", f"{number}.25\\{number}.5")
    return dataset
