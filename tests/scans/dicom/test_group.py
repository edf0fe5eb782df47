"""Series to volumes: what belongs together, in which order, and what is told apart."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from nibabel.nicom import dicomwrappers

from medlight.errors import MedlightError
from medlight.scans.dicom.frames import Place, Stack
from medlight.scans.dicom.geometry import affine
from medlight.scans.dicom.group import stacks
from medlight.scans.dicom.header import frames_of, header_of, parse
from tests.data import fake_dicom as fake
from tests.data.fake_dicom import OBLIQUE, SAGITTAL, Grid


def grouped(datasets, folder: Path) -> list[Stack]:
    """Write, read the headers back in the order of the random names, group."""
    fake.write(datasets, folder)
    headers = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        dataset = parse(Place(file))
        headers.append((header_of(dataset), frames_of(dataset, Place(file))))
    return stacks(headers)


def voxels(stack: Stack) -> np.ndarray:
    """``(C, I, J, K)`` by a direct reading of the files that the frames name."""
    planes = []
    for frame in stack.frames:
        pixels = pydicom.dcmread(frame.place.path).pixel_array
        pixels = pixels if pixels.ndim == 2 else pixels[frame.index]
        if frame.tile:
            row, column = frame.tile
            pixels = pixels[row : row + frame.shape[0], column : column + frame.shape[1]]
        planes.append(pixels.T)
    slices = len(planes) // len(stack.channels)
    return np.stack(planes).reshape(len(stack.channels), slices, *planes[0].shape).transpose(0, 2, 3, 1)


def agrees(stack: Stack, grid: Grid, channels: int = 1) -> None:
    """Voxels and places are the truth's; slices may run the other way."""
    array, place = fake.truth(grid, channels)
    slices = len(stack.frames) // len(stack.channels)
    np.testing.assert_array_equal(voxels(stack), array)
    np.testing.assert_allclose(affine(stack.frames[:slices]), place, atol=1e-6)


@pytest.mark.parametrize("orientation", [fake.AXIAL, SAGITTAL, fake.CORONAL, OBLIQUE])
def test_a_series_is_ordered_by_geometry_whatever_its_names_and_numbers(tmp_path, orientation):
    grid = Grid(orientation=orientation)
    (stack,) = grouped(fake.series(grid), tmp_path)
    assert stack.verdict.status == "ok"
    assert stack.channels[0].time_ms is None
    agrees(stack, grid)


@pytest.mark.parametrize(
    ("datasets", "status", "words"),
    [
        (fake.without(fake.series(Grid(shape=(10, 12, 9))), 4), "gap", "5 mm between slices 4 and 5"),
        (fake.uneven(), "uneven", "2.75 mm (slices 1 and 2)"),
        (fake.tilted(12.0), "tilt", "12.0 degrees"),
        (fake.doubled(fake.series()), "duplicate", "slices 3 and 4 of 7"),
        (fake.two_orientations(2), "mixed-orientation", "90.0 degrees"),
        (fake.two_shapes(2), "mixed-shape", "6 slices of 12x10"),
        (fake.localizer(), "not-a-volume", "a localizer (3 slices)"),
        (fake.series(Grid(shape=(10, 12, 1))), "not-a-volume", "a single slice"),
        (fake.secondary_capture(), "not-a-volume", "secondary capture"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_each_fault_has_its_verdict_with_figures(tmp_path, datasets, status, words):
    (stack,) = grouped(datasets, tmp_path)
    assert stack.verdict.status == status
    assert words in stack.verdict.detail


def test_two_orientations_with_slices_enough_are_two_volumes(tmp_path):
    first, second = grouped(fake.two_orientations(6), tmp_path)
    assert {first.verdict.status, second.verdict.status} == {"ok"}
    assert first.id != second.id
    by_way = {frame.along_row: stack for stack in (first, second) for frame in stack.frames[:1]}
    agrees(by_way[fake.AXIAL[0]], Grid())
    agrees(by_way[SAGITTAL[0]], Grid(orientation=SAGITTAL))


def test_two_shapes_with_slices_enough_are_two_volumes(tmp_path):
    found = grouped(fake.two_shapes(6), tmp_path)
    assert [stack.verdict.status for stack in found] == ["ok", "ok"]
    assert {stack.frames[0].shape for stack in found} == {(10, 12), (8, 9)}


def test_two_slabs_are_two_volumes_and_never_a_gap(tmp_path):
    found = sorted(grouped(fake.two_volumes(), tmp_path), key=lambda stack: stack.frames[0].position[2])
    assert [stack.verdict.status for stack in found] == ["ok", "ok"]
    agrees(found[0], Grid())


def test_a_missing_slice_between_acquisitions_is_a_gap(tmp_path):
    """A scanner may number the rotations of one volume: that doesn't make a hole in it two volumes."""
    datasets = fake.without(fake.series(Grid(shape=(10, 12, 12))), 4)
    for dataset in datasets:
        dataset.AcquisitionNumber = 1 + (dataset.InstanceNumber - 1) // 4
    (stack,) = grouped(datasets, tmp_path)
    assert stack.verdict.status == "gap"


@pytest.mark.parametrize("how", ["temporal", "acquisition", "trigger", "time"])
def test_a_series_in_time_is_one_4d_volume(tmp_path, how):
    (stack,) = grouped(fake.by_time(3, how), tmp_path)
    assert stack.verdict.status == "ok"
    agrees(stack, Grid(), 3)
    times = [key.time_ms for key in stack.channels]
    expected = {"trigger": [0, 40, 80], "acquisition": [None] * 3}.get(how, [0, 2300, 4600])
    assert times == pytest.approx(expected) if None not in expected else times == expected
    if how in ("temporal", "acquisition"):
        assert [key.acquisition for key in stack.channels] == [1, 2, 3]


def test_diffusion_weightings_are_channels(tmp_path):
    (stack,) = grouped(fake.by_b_value(), tmp_path)
    assert stack.verdict.status == "ok"
    assert [key.b_value for key in stack.channels] == [0, 500, 500, 1000, 1000]
    assert [key.gradient for key in stack.channels] == [None, (0, 1, 0), (1, 0, 0), (0, 1, 0), (1, 0, 0)]
    array = fake.truth(Grid(), 5)[0]
    np.testing.assert_array_equal(voxels(stack), array[[0, 2, 1, 4, 3]])


@pytest.mark.parametrize("vendor", ["siemens", "ge", "philips"])
def test_vendors_b_values_are_known(tmp_path, vendor):
    datasets = []
    for channel, b_value in enumerate((0, 700)):
        for dataset in fake.series(channel=channel, modality="MR"):
            match vendor:
                case "siemens":
                    block = dataset.private_block(0x19, "SIEMENS MR HEADER", create=True)
                    block.add_new(0x0C, "IS", b_value)
                    block.add_new(0x0E, "FD", [0.0, 0.6, 0.8]) if b_value else None
                case "ge":
                    block = dataset.private_block(0x43, "GEMS_PARM_01", create=True)
                    block.add_new(0x39, "IS", [1000000000 + b_value, 8, 0, 0])
                case "philips":
                    block = dataset.private_block(0x2001, "Philips Imaging DD 001", create=True)
                    block.add_new(0x03, "FL", float(b_value))
            datasets.append(dataset)
    (stack,) = grouped(datasets, tmp_path)
    assert [key.b_value for key in stack.channels] == [0, 700]
    if vendor == "siemens":
        assert stack.channels[1].gradient == pytest.approx((0, 0.6, 0.8))


def test_ge_directions_tell_frames_apart_though_they_are_not_turned(tmp_path):
    datasets = []
    for channel in range(3):
        for dataset in fake.series(channel=channel, modality="MR", DiffusionBValue=1000.0):
            block = dataset.private_block(0x19, "GEMS_ACQU_01", create=True)
            for number, part in enumerate([(1, 0, 0), (0, 1, 0), (0.6, 0, 0.8)][channel]):
                block.add_new(0xBB + number, "DS", str(part))
            datasets.append(dataset)
    (stack,) = grouped(datasets, tmp_path)
    assert (stack.verdict.status, len(stack.channels)) == ("ok", 3)
    assert {key.gradient for key in stack.channels} == {None}


def test_echoes_are_channels(tmp_path):
    (stack,) = grouped(fake.by_echo((4.6, 9.2, 13.8)), tmp_path)
    assert [key.echo_time_ms for key in stack.channels] == [4.6, 9.2, 13.8]
    agrees(stack, Grid(), 3)


def test_echoes_between_each_other_are_not_shuffled(tmp_path):
    """Two echoes at alternate places would make one even volume, of every second slice of each."""
    lower = fake.series(Grid(step=5.0), modality="MR", EchoTime=10.0)
    upper = fake.series(Grid(step=5.0, origin=(-20.0, -30.5, 42.75)), channel=1, modality="MR", EchoTime=80.0)
    found = grouped([*lower, *upper], tmp_path)
    assert [stack.verdict.status for stack in found] == ["ok", "ok"]
    assert sorted(stack.channels[0].echo_time_ms for stack in found) == [10, 80]
    agrees(min(found, key=lambda stack: stack.channels[0].echo_time_ms), Grid(step=5.0))


def test_magnitude_and_phase_are_two_volumes(tmp_path):
    kinds = (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])
    datasets = [s for c, kind in enumerate(kinds) for s in fake.series(channel=c, modality="MR", ImageType=kind)]
    found = grouped(datasets, tmp_path)
    assert [(stack.verdict.status, len(stack.channels)) for stack in found] == [("ok", 1), ("ok", 1)]


def test_image_types_that_differ_from_slice_to_slice_tear_no_volume(tmp_path):
    datasets = fake.series(modality="MR")
    for dataset in datasets[::2]:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "NORM"]
    (stack,) = grouped(datasets, tmp_path)
    assert stack.verdict.status == "ok"


def test_a_time_that_was_cut_short_is_told_apart(tmp_path):
    datasets = fake.by_time(4, "temporal")[:-2]
    whole, rest = sorted(grouped(datasets, tmp_path), key=lambda stack: -len(stack.frames))
    assert (whole.verdict.status, len(whole.channels)) == ("ok", 3)
    assert (rest.verdict.status, len(rest.frames)) == ("gap", 4)
    assert "4 of the 6 slices" in rest.verdict.detail


def test_slices_missing_at_different_times_shuffle_nothing(tmp_path):
    """The order of times at each place would put a slice of the second time among those of the first."""
    datasets = fake.by_time(3, "time")
    del datasets[2], datasets[6 + 4 - 1]
    assert all(stack.verdict.status != "ok" for stack in grouped(datasets, tmp_path))


def test_a_weighting_that_lacks_a_slice_is_told_and_filled_with_no_other(tmp_path):
    datasets = fake.by_b_value((0.0, 1000.0))
    del datasets[6 + 2]
    whole, rest = sorted(grouped(datasets, tmp_path), key=lambda stack: -len(stack.frames))
    assert (whole.verdict.status, [key.b_value for key in whole.channels]) == ("ok", [0, 1000])
    assert (rest.verdict.status, rest.channels[0].b_value, len(rest.frames)) == ("gap", 1000, 5)


def test_a_slice_taken_again_is_a_duplicate_though_its_time_differs(tmp_path):
    datasets = fake.series(AcquisitionNumber=1, AcquisitionTime="101112")
    datasets = fake.doubled(datasets)
    datasets[-1].AcquisitionNumber, datasets[-1].AcquisitionTime = 2, "101152"
    (stack,) = grouped(datasets, tmp_path)
    assert stack.verdict.status == "duplicate"


def test_one_plane_in_time(tmp_path):
    """A film of the heart is read; CT repeats a plane to wait for contrast, which is no volume."""
    one = Grid(shape=(10, 12, 1))
    (film,) = grouped(fake.by_time(5, "trigger", one), tmp_path / "film")
    assert (film.verdict.status, len(film.channels)) == ("ok", 5)
    (waiting,) = grouped(fake.by_time(5, "time", one, modality="CT"), tmp_path / "ct")
    assert (waiting.verdict.status, waiting.verdict.detail) == ("not-a-volume", "a single slice, 5 times")


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_enhanced_object_is_a_volume(tmp_path, modality, shared):
    grid = Grid(orientation=OBLIQUE)
    (stack,) = grouped(fake.enhanced(grid, modality, shared), tmp_path)
    assert stack.verdict.status == "ok"
    agrees(stack, grid)


def test_an_enhanced_object_with_b_values_is_4d(tmp_path):
    (stack,) = grouped(fake.enhanced(b_values=(0, 800, 1600)), tmp_path)
    assert [key.b_value for key in stack.channels] == [0, 800, 1600]
    agrees(stack, Grid(), 3)


def test_a_tilted_enhanced_object_is_told(tmp_path):
    (stack,) = grouped(fake.enhanced(Grid(degrees=8.0), "CT"), tmp_path)
    assert (stack.verdict.status, stack.verdict.detail.split()[0]) == ("tilt", "8.0")


@pytest.mark.parametrize("step", [3.0, -3.0])
def test_a_mosaic_is_a_volume(tmp_path, step):
    grid = Grid(shape=(10, 12, 7), orientation=OBLIQUE, step=step)
    (stack,) = grouped(fake.mosaic(grid), tmp_path)
    assert stack.verdict.status == "ok"
    array, place = fake.truth(grid)
    found = voxels(stack)
    if step < 0:  # slices against the normal: the first that is made lies last
        last = np.eye(4)
        last[2, 2], last[2, 3] = -1, 6
        array, place = array[..., ::-1], place @ last
    np.testing.assert_array_equal(found, array)
    np.testing.assert_allclose(affine(stack.frames), place, atol=1e-6)


def test_mosaics_in_time_are_4d(tmp_path):
    grid = Grid(shape=(10, 12, 7))
    datasets = [fake.mosaic(grid, c, AcquisitionNumber=c + 1, AcquisitionTime=f"1011{12 + 2 * c}") for c in range(4)]
    (stack,) = grouped(datasets, tmp_path)
    assert [key.time_ms for key in stack.channels] == [0, 2000, 4000, 6000]
    agrees(stack, grid, 4)


def test_pictures_and_films(tmp_path):
    (picture,) = grouped(fake.radiograph(), tmp_path / "dx")
    assert (picture.verdict.status, picture.frames[0].spacing) == ("ok", (0.2, 0.1))
    (film,) = grouped(fake.cine(4), tmp_path / "us")
    assert [key.time_ms for key in film.channels] == [0, 40, 80, 120]
    assert film.verdict.status == "ok"


def test_slices_that_lost_their_place_are_told_beside_the_others(tmp_path):
    datasets = fake.series()
    del datasets[5].ImagePositionPatient
    whole, lost = sorted(grouped(datasets, tmp_path), key=lambda stack: -len(stack.frames))
    assert whole.verdict.status == "ok"
    assert lost.verdict.detail == "1 of 6 slices of a series have no place in the patient"


def test_a_localizer_in_the_series_is_told_apart(tmp_path):
    datasets = [*fake.series(series="s"), *fake.localizer(4, series="s")[3:]]
    found = grouped(datasets, tmp_path)
    assert sorted(stack.verdict.status for stack in found) == ["not-a-volume", "ok"]


def test_what_is_no_image_is_ok_beside_a_volume(tmp_path):
    kinds = {stack.kind: stack.verdict.status for stack in grouped([*fake.series(), fake.report()], tmp_path)}
    assert kinds == {"image": "ok", "other": "ok"}


def test_a_copy_in_another_folder_is_another_series_and_one_beside_it_a_duplicate(tmp_path):
    def judged(*places: tuple[str, int]) -> list[str]:
        headers = [
            (header, [replace(frame, place=Place(tmp_path / folder / f"{n} {number}")) for frame in frames])
            for n, (folder, number) in enumerate(places)
            for header, frames in [read[number]]
        ]
        return sorted(stack.verdict.status for stack in stacks(headers))

    fake.write(fake.series(), tmp_path)
    datasets = [parse(Place(file)) for file in sorted(tmp_path.iterdir())]
    datasets.sort(key=lambda dataset: -dataset.InstanceNumber)
    read = [(header_of(dataset), frames_of(dataset, Place(tmp_path))) for dataset in datasets]
    whole = range(6)
    assert judged(*(("a", n) for n in whole), *(("b", n) for n in whole)) == ["ok", "ok"]
    assert judged(*(("a", n) for n in whole), *(("b", n) for n in whole if n != 2)) == ["gap", "ok"]
    assert judged(*(("a", n) for n in whole), *(("b", n) for n in whole), ("b", 2)) == ["duplicate", "ok"]
    assert judged(*(("a", n) for n in whole), *(("a", n) for n in whole)) == ["duplicate"]
    assert judged(*(("a", n) for n in whole if n < 4), *(("b", n) for n in whole if n > 2)) == ["duplicate"]
    assert judged(*(("a", n) for n in whole if n < 3), *(("b", n) for n in whole if n > 2)) == ["ok"]


def test_a_stack_has_the_same_name_wherever_it_lies_and_nothing_of_the_patient(tmp_path):
    (here,), (there,) = (grouped(fake.series(), tmp_path / name) for name in ("Jane Doe", "b"))
    assert here.id == there.id
    assert here.id.startswith("ct-")
    kept = repr((here.facts, here.channels, here.verdict, here.id, here.modality))
    assert not any(secret in kept for secret in fake.SECRETS)


@pytest.mark.parametrize(("name", "b_value"), [("siemens_dwi_0", 0), ("siemens_dwi_1000", 1000)])
def test_a_real_mosaic_lies_where_nibabel_has_it(tmp_path, name, b_value):
    packed = Path(dicomwrappers.__file__).parent / "tests" / "data" / f"{name}.dcm.gz"
    file = tmp_path / "x.dcm"
    file.write_bytes(gzip.decompress(packed.read_bytes()))
    dataset = parse(Place(file))
    (stack,) = stacks([(header_of(dataset), frames_of(dataset, Place(file)))])
    peer = dicomwrappers.wrapper_from_file(str(file))
    assert (stack.verdict.status, len(stack.frames)) == ("ok", 48)
    assert stack.channels[0].b_value == b_value
    swap = np.eye(4)[[1, 0, 2, 3]]  # nibabel's first axis runs along the rows
    np.testing.assert_allclose(affine(stack.frames), np.diag([-1, -1, 1, 1]) @ peer.affine @ swap, atol=1e-6)
    np.testing.assert_array_equal(voxels(stack)[0], peer.get_unscaled_data().transpose(1, 0, 2))
    if b_value:
        x, y, z = stack.channels[0].gradient
        turned = np.linalg.inv(peer.rotation_matrix) @ (x, y, z)
        assert abs(turned @ peer.b_vector) > 0.9999


def test_a_dose_grid_is_a_volume(tmp_path):
    file = Path(pydicom.__file__).parent / "data" / "test_files" / "rtdose.dcm"
    dataset = parse(Place(file))
    (stack,) = stacks([(header_of(dataset), frames_of(dataset, Place(file)))])
    said = pydicom.dcmread(file)
    assert (stack.verdict.status, stack.modality, len(stack.frames)) == ("ok", "RTDOSE", 15)
    heights = [frame.position[2] for frame in stack.frames]
    assert heights == [said.ImagePositionPatient[2] + offset for offset in said.GridFrameOffsetVector]
    said.GridFrameOffsetVector = [said.ImagePositionPatient[2] + offset for offset in said.GridFrameOffsetVector]
    (other,) = grouped(said, tmp_path)  # the other way to write it: as heights (PS3.3 C.8.8.3.2)
    assert [frame.position for frame in other.frames] == [frame.position for frame in stack.frames]
    said.GridFrameOffsetVector = said.GridFrameOffsetVector[:-1]
    fake.save(said, tmp_path / "lost" / "x")
    with pytest.raises(MedlightError, match="15, and 14 offsets"):
        frames_of(parse(Place(tmp_path / "lost" / "x")), Place(tmp_path / "lost" / "x"))


def test_reconstructed_slices_of_nuclear_medicine_are_a_volume(tmp_path):
    grid = Grid(shape=(10, 12, 5))
    values = np.stack([fake.pixels(k, (10, 12)) for k in range(5)])
    detector = fake.item(ImagePositionPatient=list(grid.origin), ImageOrientationPatient=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    made = fake.instance(
        values,
        "OT",
        Modality="NM",
        ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"],
        NumberOfFrames=5,
        PixelSpacing=list(grid.spacing),
        SpacingBetweenSlices=2.5,
        SliceThickness=2.5,
        DetectorInformationSequence=detector,
    )
    (stack,) = grouped(made, tmp_path)
    assert stack.verdict.status == "ok"
    agrees(stack, grid)
