"""Mends, against phantoms that are known at every point of space and against ITK's and SciPy's resampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medlight.errors import MedlightError, UsageError
from medlight.scans.dicom.frames import ChannelKey, Frame, Place, Stack
from medlight.scans.dicom.geometry import affine as affine_of
from medlight.scans.dicom.geometry import verdict
from medlight.scans.dicom.mend import Mends, mend_array, mended_frames

TO_RAS = np.diag([-1.0, -1, 1, 1])
ALL = Mends("interpolate", "resample", "deskew", "first")


def phantom(points):
    """A smooth head in HU at any points ``(..., 3)`` in RAS millimetres: three blobs in air."""
    value = np.full(points.shape[:-1], -1000.0)
    for centre, width, height in (((5, 4, 20), 14, 900), ((-9, 12, 30), 9, 500), ((14, -10, 12), 8, 700)):
        value += height * np.exp(-((points - np.array(centre)) ** 2).sum(axis=-1) / (2 * width**2))
    return value


def places(affine, shape):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def scanned(heights, lean=(0.0, 0.0), sideways=None, turn=(0, 0, 0), shape=(60, 50), spacing=(1.1, 0.9), modality="CT"):
    """Slices of the phantom at ``heights`` along the normal, each ``lean`` mm a mm beside it; array, affine, stack."""
    heights = np.asarray(heights, float)
    turned = nib.eulerangles.euler2mat(*turn)
    across, down, normal = turned.T  # LPS
    origin = np.array([-30.0, -24, -2]) @ turned.T
    beside = heights[:, None] * np.asarray(lean) + (0 if sideways is None else np.asarray(sideways))
    frames = []
    for number, (height, (u, v)) in enumerate(zip(heights, beside, strict=True)):
        position = origin + height * normal + u * across + v * down
        frames.append(
            Frame(
                Place(Path(f"{number}.dcm")),
                f"1.2.{number}",
                shape[::-1],
                spacing=spacing[::-1],
                position=tuple(position.tolist()),
                along_row=tuple(across.tolist()),
                along_column=tuple(down.tolist()),
                thickness=2.0,
                instance=number,
            )
        )
    stack = Stack("1.2", modality, tuple(frames), verdict=verdict(frames))
    planes = [phantom(places(affine_of([frame]), (*shape, 1)))[..., 0] for frame in frames]
    return np.stack(planes, axis=-1)[None], affine_of(frames), stack


def itk(array, affine, fill=None):
    """An ITK image of ``(I, J, K)``; with ``fill``, one voxel wider along I and J."""
    if fill is not None:
        array = np.pad(array, ((1, 1), (1, 1), (0, 0)), constant_values=fill)
        affine = affine @ np.array([[1, 0, 0, -1], [0, 1, 0, -1], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    lps = TO_RAS @ affine
    size = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(size.tolist())
    image.SetDirection((lps[:3, :3] / size).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def is_upright(affine):
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)


# Tilt


@settings(max_examples=20, deadline=None)
@given(
    degrees=st.floats(-30, 30).filter(lambda d: abs(d) > 1),
    turn=st.tuples(*[st.floats(-0.6, 0.6)] * 3),
    both=st.booleans(),
)
def test_a_deskewed_series_shows_the_phantom_where_it_is(degrees, turn, both):
    lean = np.tan(np.radians(degrees)) * (np.array([0.6, 0.8]) if both else np.array([0, 1]))
    array, affine, stack = scanned(np.arange(20) * 2.5, lean, turn=turn)
    assert stack.verdict.status == "tilt"
    made, placed, notes = mend_array(array, affine, stack, Mends(tilt="deskew"))
    assert is_upright(placed)
    np.testing.assert_allclose(np.linalg.norm(placed[:3, :3], axis=0), (1.1, 0.9, 2.5), atol=1e-6)
    shown = made[0] != -1024
    assert shown.sum() > 0.9 * array.size
    truth = phantom(places(placed, made.shape[1:]))
    inner = ndimage.binary_erosion(shown, np.ones((3, 3, 1), bool))
    assert np.abs(made[0] - truth)[inner].max() < 4  # HU, of linear interpolation; a voxel beside it would be 60
    assert np.array_equal(made[0].max() > 300, truth.max() > 300)
    assert notes == [f"tilt: {abs(degrees):.4g} degrees deskewed"]


def test_nothing_is_cut_and_what_no_slice_shows_is_air():
    array, affine, stack = scanned(np.arange(20) * 2.5, (0, 0.3))
    made, placed, _ = mend_array(array.astype(np.int16), affine, stack, ALL)
    assert made.dtype == np.int16
    steps = 0.3 * 2.5 * 19 / 0.9
    assert made.shape == (1, 60, 50 + np.ceil(steps), 20)
    np.testing.assert_array_equal(made[0, :, :50, 0], array[0, ..., 0].astype(np.int16))
    assert (made[0, :, 50:, 0] == -1024).all()
    assert (made[0, :, :15, -1] == -1024).all()
    inverse = np.linalg.inv(placed)
    for k in (0, 7, 19):  # every corner of every slice lies on the new grid
        for i, j in ((0, 0), (59, 49)):
            at = (inverse @ affine @ [i, j, k, 1])[:3]
            assert (at > -1e-6).all()
            assert (at < np.array(made.shape[1:]) - 1 + 1e-6).all()
            assert at[2] == pytest.approx(k, abs=1e-6)


@pytest.mark.parametrize("lean", [(0, 0.3), (-0.17, 0.21), (0.36, 0)])  # 0.36 * 2.5 / 0.9: whole voxels, no blur
def test_deskewing_is_itks_resampling_of_the_sheared_grid(lean):
    array, affine, stack = scanned(np.arange(12) * 2.5, lean, turn=(0.2, -0.1, 0.3))
    made, placed, _ = mend_array(array, affine, stack, ALL)
    source, grid = itk(array[0], affine, fill=-1024), itk(made[0], placed)
    seen = sitk.GetArrayFromImage(sitk.Resample(source, grid, sitk.Transform(), sitk.sitkLinear, -1024.0)).T
    np.testing.assert_allclose(made[0], seen, atol=1e-3)


def test_other_modalities_get_their_lowest_value():
    array, affine, stack = scanned(np.arange(8) * 2.5, (0, 0.3), modality="MR")
    made, *_ = mend_array(array + 1000, affine, stack, ALL)
    assert made[0, 0, -1, 0] == (array + 1000).min()
    array, affine, stack = scanned(np.arange(8) * 2.5, (0, 0.3))  # a CT whose values are no HU
    made, *_ = mend_array((array + 1024).astype(np.uint16), affine, stack, ALL)
    assert made.dtype == np.uint16
    assert made.min() == (array + 1024).astype(np.uint16).min()


def test_a_lean_beyond_any_gantry_is_refused():
    array, affine, stack = scanned(np.arange(20) * 5.0, (0, 6.0))
    with pytest.raises(MedlightError, match=r"so far beside each other .* \(80\.5 degrees\)"):
        mend_array(array, affine, stack, ALL)


# Gaps


def test_missing_slices_are_made_up_between_their_neighbours():
    kept = [n for n in range(24) if n not in (5, 6, 15)]
    array, affine, stack = scanned(np.array(kept) * 2.0, turn=(0.3, 0.1, -0.2))
    assert stack.verdict.status == "gap"
    made, placed, notes = mend_array(array, affine, stack, Mends(gap="interpolate"))
    assert made.shape == (1, 60, 50, 24)
    assert notes == ["gap: 21 slices made 24, those missing interpolated"]
    whole, true_affine, _ = scanned(np.arange(24) * 2.0, turn=(0.3, 0.1, -0.2))
    np.testing.assert_allclose(placed, true_affine, atol=1e-9)
    np.testing.assert_array_equal(made[..., kept], array)  # what was scanned is untouched
    np.testing.assert_allclose(made[0, ..., 5], whole[0, ..., 4] * 2 / 3 + whole[0, ..., 7] / 3, atol=1e-3)
    np.testing.assert_allclose(made[0, ..., 6], whole[0, ..., 4] / 3 + whole[0, ..., 7] * 2 / 3, atol=1e-3)
    assert np.abs(made - whole).max() < 60


def test_a_gap_in_a_tilted_series_needs_both_mends():
    kept = [n for n in range(20) if n not in (5, 6)]
    array, affine, stack = scanned(np.array(kept) * 2.5, (0, 0.27))
    for mends in (Mends(gap="interpolate"), Mends(tilt="deskew")):
        with pytest.raises(MedlightError, match=r"--on (tilt=deskew|gap=interpolate) mends it"):
            mend_array(array, affine, stack, mends)
    made, placed, notes = mend_array(array, affine, stack, ALL)
    assert is_upright(placed)
    assert made.shape[3] == 20
    assert [note.split(":")[0] for note in notes] == ["gap", "tilt"]
    truth = phantom(places(placed, made.shape[1:]))
    inner = ndimage.binary_erosion(made[0] != -1024, np.ones((7, 7, 1), bool))  # its neighbours' edges lie apart
    error = np.abs(made[0] - truth) * inner
    assert error[..., [0, 3, 4, 7, 12, 19]].max() < 4
    assert error.max() < 7.5**2 / 8 * 700 / 8**2  # linear interpolation over 7.5 mm of the sharpest blob


def test_more_made_up_than_scanned_is_refused():
    array, affine, stack = scanned([0, 2, 4, 6, 200, 202, 204])
    assert stack.verdict.status == "gap"
    with pytest.raises(MedlightError, match=r"more slices would be made up .* gap=split"):
        mend_array(array, affine, stack, ALL)


def test_splitting_gives_each_run_with_its_own_verdict():
    _, _, stack = scanned([0, 2, 4, 10, 16, 18, 20, 22])
    second = tuple(
        replace(frame, sop_uid=frame.sop_uid + ".9", channel=ChannelKey(time_ms=9.0)) for frame in stack.frames
    )
    stack = replace(stack, frames=stack.frames + second, channels=(ChannelKey(), ChannelKey(time_ms=9.0)))
    pieces = mended_frames(stack, Mends(gap="split"))
    assert [(len(piece.frames), piece.verdict.status) for piece in pieces] == [
        (6, "ok"),
        (2, "not-a-volume"),
        (8, "ok"),
    ]
    for piece, heights in zip(pieces, ([0, 2, 4], [10], [16, 18, 20, 22]), strict=True):
        seen = [frame.position[2] + 2 for frame in piece.frames]
        np.testing.assert_allclose(seen, heights * 2, atol=1e-9)
        assert len(piece.facts["mended"]) == 1
    assert len({piece.id for piece in pieces}) == 3
    assert mended_frames(stack, Mends()) == [stack]
    assert mended_frames(pieces[0], ALL) == [pieces[0]]


# Uneven


def test_uneven_slices_are_resampled_from_the_first_to_the_last():
    heights = np.cumsum([0, *[2.0] * 6, *[2.5] * 7, *[1.5] * 4])
    array, affine, stack = scanned(heights)
    assert stack.verdict.status == "uneven"
    made, placed, notes = mend_array(array, affine, stack, Mends(uneven="resample"))
    assert "1.5 to 2.5 mm apart resampled" in notes[0]
    np.testing.assert_array_equal(made[..., [0, -1]], array[..., [0, -1]])
    ends = affine_of([stack.frames[0], stack.frames[-1]])
    np.testing.assert_allclose(placed @ [0, 0, made.shape[3] - 1, 1], ends @ [0, 0, 1, 1], atol=1e-9)
    assert is_upright(placed)
    assert np.abs(made[0] - phantom(places(placed, made.shape[1:]))).max() < 25
    wanted = np.linspace(0, heights[-1], made.shape[3])  # SciPy's linear interpolation along the normal
    at = np.interp(wanted, heights, np.arange(len(heights)))
    where = np.broadcast_to(at, made.shape[1:])
    index = np.stack([*np.indices(made.shape[1:])[:2], where])
    np.testing.assert_allclose(made[0], ndimage.map_coordinates(array[0], index, order=1), atol=0.05)


def test_a_slice_beside_the_others_is_brought_back():
    beside = np.zeros((16, 2))
    beside[7] = 4.4, 0
    array, affine, stack = scanned(np.arange(16) * 2.0, sideways=beside)
    assert stack.verdict.status == "uneven"
    made, placed, _ = mend_array(array, affine, stack, ALL)
    inner = ndimage.binary_erosion(made[0] != -1024, np.ones((3, 3, 1), bool))
    assert np.abs(made[0] - phantom(places(placed, made.shape[1:])))[inner].max() < 4


# Duplicates, channels, and what isn't asked for


def test_the_first_of_each_place_is_kept():
    _, _, stack = scanned(np.arange(6) * 2.0)
    twice = [replace(stack.frames[n], sop_uid=f"1.2.{n}.again", instance=instance) for n, instance in ((2, 1), (4, 40))]
    frames = sorted([*stack.frames, *twice], key=lambda frame: (frame.position[2], frame.sop_uid))
    doubled = replace(stack, frames=tuple(frames), verdict=verdict(frames))
    assert doubled.verdict.status == "duplicate"
    assert mended_frames(doubled, Mends(gap="split")) == [doubled]
    (kept,) = mended_frames(doubled, Mends(duplicate="first"))
    assert kept.verdict.status == "ok"
    assert [frame.instance for frame in kept.frames] == [0, 1, 1, 3, 4, 5]
    assert kept.facts["mended"] == ["duplicate: 2 frames left out, the first at each place kept"]
    array = np.zeros((1, 60, 50, 6))
    assert mend_array(array, np.eye(4), kept, Mends())[2] == kept.facts["mended"]


def test_duplicates_in_one_channel_of_several():
    _, _, stack = scanned(np.arange(4) * 2.0)
    first, second = (
        stack.frames,
        tuple(replace(f, sop_uid=f.sop_uid + ".9", channel=ChannelKey(9.0)) for f in stack.frames),
    )
    extra = replace(second[1], sop_uid="1.2.1.99")
    judged = verdict([*second[:2], extra])
    mixed = Stack(
        "1.2", "MR", (*first, *second[:2], extra, *second[2:]), (ChannelKey(), ChannelKey(9.0)), verdict=judged
    )
    (kept,) = mended_frames(mixed, ALL)
    assert kept.frames == first + second
    torn = replace(mixed, frames=(*first[:3], *second[:2], extra, *second[2:]))
    assert mended_frames(torn, ALL) == [torn]  # channels of other places: nothing to be done


def test_what_is_sound_or_not_asked_for_is_left():
    array, affine, stack = scanned(np.arange(6) * 2.0)
    for mends in (Mends(), ALL):
        made, placed, notes = mend_array(array, affine, stack, mends)
        assert made is array
        assert placed is affine
        assert notes == []
    for heights, lean in (([0, 2, 4, 8, 10], (0, 0)), ([0, 2, 5, 6, 10], (0, 0)), ([0, 2, 4, 6], (0, 0.3))):
        array, affine, stack = scanned(heights, lean)
        with pytest.raises(MedlightError, match=f"{stack.verdict.status}: .*--on {stack.verdict.status}="):
            mend_array(array, affine, stack, Mends())


def test_channels_are_mended_alike():
    array, affine, stack = scanned([0, 2, 4, 8, 10, 12], (0, 0.3))
    both = np.concatenate([array, 2 * array])
    doubled = replace(stack, frames=stack.frames * 2, channels=(ChannelKey(), ChannelKey(9.0)))
    made, placed, _ = mend_array(both, affine, doubled, ALL)
    alone, where, _ = mend_array(array, affine, stack, ALL)
    np.testing.assert_array_equal(made[0], alone[0])
    np.testing.assert_array_equal(placed, where)
    inside = ndimage.binary_erosion(alone[0] != -1024, np.ones((7, 7, 1), bool))
    np.testing.assert_allclose(made[1][inside], 2 * alone[0][inside], atol=1e-6)


def test_mends_are_read_from_flags_and_yaml():
    mends = Mends.parse(["gap=split", "tilt=deskew", "gap=interpolate"])
    assert mends == Mends.from_mapping({"gap": "interpolate", "tilt": "deskew"})
    assert mends.to_dict() == {"gap": "interpolate", "tilt": "deskew"}
    assert [s for s in ("ok", "gap", "uneven", "tilt", "duplicate", "unreadable") if mends.covers(s)] == [
        "ok",
        "gap",
        "tilt",
    ]
    for flags, said in (
        (["gap"], "give a fault and what is done"),
        (["gpa=split"], "did you mean 'gap'"),
        (["gap=splt"], "did you mean 'split'"),
        (["duplicate=last"], "is not error or first"),
    ):
        with pytest.raises(UsageError, match=said):
            Mends.parse(flags)
    with pytest.raises(UsageError, match=r"on\.gap: True"):
        Mends.from_mapping({"gap": True})
