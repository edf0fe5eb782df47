"""MetaImage and NRRD, against ITK's and pynrrd's own readers and writers."""

from __future__ import annotations

import itertools

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medlight.errors import MedlightError
from medlight.scans import read
from medlight.scans.headers import facts

SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
LPS = np.diag([-1.0, -1, 1, 1])


def itk_image(axes, components, dtype, rng):
    """An ITK image of any number of axes and components, turned any way in space."""
    shape = (2, 3, 4, 5)[4 - axes :] + ((components,) if components > 1 else ())
    image = sitk.GetImageFromArray((rng.random(shape) * 200).astype(dtype), isVector=components > 1)
    turn = np.eye(axes)
    if axes == 2:
        turn[:] = [[0.8, -0.6], [0.6, 0.8]]
    else:
        turn[:3, :3] = nib.eulerangles.euler2mat(*rng.uniform(-3, 3, 3))
    image.SetDirection(turn.ravel().tolist())
    image.SetSpacing(rng.uniform(0.3, 4, axes).tolist())
    image.SetOrigin(rng.uniform(-200, 200, axes).tolist())
    return image


def as_itk_reads(path):
    """Voxels ``(C, I, J, K)`` and affine, of ITK's reader."""
    image = sitk.ReadImage(str(path))
    axes, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    array = sitk.GetArrayFromImage(image)
    array = array if components > 1 else array[..., None]
    array = array.reshape((1,) * (5 - array.ndim) + array.shape)  # frames, k, j, i, components
    affine = np.eye(4)
    seen = min(axes, 3)
    steps = np.array(image.GetDirection()).reshape(axes, axes) * image.GetSpacing()
    affine[:seen, :seen] = steps[:seen, :seen]
    affine[:seen, 3] = image.GetOrigin()[:seen]
    return array.transpose(0, 4, 3, 2, 1).reshape(-1, *array.shape[3:0:-1]), LPS @ affine


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.integers(2, 4),
    components=st.sampled_from([1, 2, 3]),
    dtype=st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"]),
    packed=st.booleans(),
    suffix=st.sampled_from(SUFFIXES),
    seed=st.integers(0, 99),
)
def test_every_kind_reads_as_itk_reads_it(tmp_path, axes, components, dtype, packed, suffix, seed):
    path = tmp_path / f"x{suffix}"
    sitk.WriteImage(itk_image(axes, components, dtype, np.random.default_rng(seed)), str(path), packed)
    volume = read(path)
    array, affine = as_itk_reads(path)
    assert volume.array.dtype == array.dtype
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine[:, : min(axes, 3)], affine[:, : min(axes, 3)], atol=1e-9)
    assert abs(np.linalg.det(volume.affine)) > 0
    row = facts(path)
    assert (row["status"], row["shape"], row["channels"]) == ("ok", list(volume.shape), len(array))


@pytest.mark.parametrize(
    "space", ["right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "RAS"]
)
def test_spaces_of_nrrd_as_itk_turns_them(tmp_path, space):
    header = {
        "space": space,
        "space directions": np.array([[0, 2, 0], [1, 0, 0], [0, 0, 3.0]]),
        "space origin": [4, 5, 6],
    }
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nrrd.write(str(tmp_path / "x.nrrd"), data, header)
    volume = read(tmp_path / "x.nrrd")
    np.testing.assert_array_equal(volume.array[0], data)
    np.testing.assert_allclose(volume.affine, as_itk_reads(tmp_path / "x.nrrd")[1])


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "text"])
@pytest.mark.parametrize("detached", [False, True])
def test_encodings_of_nrrd_as_pynrrd_writes_them(tmp_path, encoding, detached):
    data = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    header = {
        "encoding": encoding,
        "space": "left-posterior-superior",
        "kinds": ["domain", "domain", "domain", "list"],
        "space directions": np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3], [np.nan] * 3]),
        "space origin": [1, 2, 3],
    }
    path = tmp_path / ("x.nhdr" if detached else "x.nrrd")
    nrrd.write(str(path), data, header, detached_header=detached)
    volume = read(path)
    np.testing.assert_array_equal(volume.array, np.moveaxis(data, -1, 0))
    assert volume.spacing == (1, 2, 3)


def test_big_endian_and_old_headers(tmp_path):
    values = np.arange(24).reshape(4, 3, 2)  # K, J, I
    (tmp_path / "b.nrrd").write_bytes(
        b"NRRD0001\n# a comment\ntype: unsigned short\ndimension: 3\nsizes: 2 3 4\nspacings: 0.5 NaN 2\nendian: big\n"
        b"encoding: raw\nwho:=Jane Doe\n\n" + values.astype(">u2").tobytes()
    )
    volume = read(tmp_path / "b.nrrd")
    np.testing.assert_array_equal(volume.array[0], values.T)
    assert volume.spacing == (0.5, 1, 2)
    assert "Jane" not in str(volume.meta)
    assert "no anatomical space" in facts(tmp_path / "b.nrrd")["detail"]
    (tmp_path / "x.raw").write_bytes(b"behind!" + values.astype(">i4").tobytes())
    (tmp_path / "b.mhd").write_text(
        "NDims = 3\nDimSize = 2 3 4\nElementSpacing = 0.5 1 2\nElementByteOrderMSB = True\nHeaderSize = -1\n"
        "ElementType = MET_INT\nElementDataFile = x.raw\n"
    )
    np.testing.assert_array_equal(read(tmp_path / "b.mhd").array[0], values.T)
    text = (
        "NDims = 2\nDimSize = 2 3\nBinaryData = False\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n1 2 3 4 5 6.5"
    )
    (tmp_path / "t.mha").write_text(text)
    assert read(tmp_path / "t.mha").array[0, :, :, 0].tolist() == [[1, 3, 5], [2, 4, 6.5]]


def test_real_segmentations_read_as_itk_reads_them(data_root):
    paths = sorted((data_root / "dicom" / "dcmqi").rglob("*.nrrd"))
    assert paths
    for path in paths:
        volume = read(path)
        array, affine = as_itk_reads(path)
        np.testing.assert_array_equal(volume.array, array)
        np.testing.assert_allclose(volume.affine, affine, atol=1e-9)


# Headers that lie or wander off


METAIMAGE = "NDims = 3\nDimSize = 2 3 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nendian: little\nencoding: raw\n\n"


def refused(path, content):
    path.write_bytes(content.encode() + bytes(48) if isinstance(content, str) else content)
    with pytest.raises(MedlightError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert ";" in str(caught.value)
    assert facts(path, deep=True)["status"] in ("unreadable", "affine")
    return str(caught.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.raw", "a/../../secret.raw", "..\\secret.raw", ""])
def test_a_header_opens_no_file_outside_its_folder(tmp_path, name):
    inside = tmp_path / "scans"
    (inside / "a").mkdir(parents=True)
    (tmp_path / "secret.raw").write_bytes(bytes(48))
    said = refused(inside / "x.mhd", METAIMAGE.replace("LOCAL", name))
    assert "not in its own folder" in said
    if name:
        said = refused(inside / "x.nhdr", NRRD.replace("encoding", f"data file: {name}\nencoding"))
        assert "not in its own folder" in said


@pytest.mark.parametrize("name", ["LIST", "x%03d.raw 1 4 1", "absent.raw"])
def test_lists_of_files_and_missing_ones_are_named(tmp_path, name):
    refused(tmp_path / "x.mhd", METAIMAGE.replace("LOCAL", name))
    refused(tmp_path / "x.nhdr", NRRD.replace("encoding", f"data file: {name}\nencoding"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2 3 4", "2 3"),
        ("2 3 4", "2 3 0"),
        ("2 3 4", "2 3 -4"),
        ("2 3 4", "2 3 5"),
        ("2 3 4", "99999 99999 99999"),
        ("2 3 4", "2 3 " + "9" * 400),
        ("2 3 4", "2 3 nan"),
        ("= 3\n", "= 1000000\n"),
        ("SHORT", "STRING"),
        ("NDims = 3\n", ""),
        ("NDims = 3\n", "NDims = 3\nNDims = 3\n"),
        ("NDims = 3\n", "NDims = 3\nOffset = 0 0\n"),
        ("NDims = 3\n", "NDims = 3\nElementSpacing = 1 0 1\n"),
        ("NDims = 3\n", "NDims = 3\nElementSpacing = 1 inf 1\n"),
        ("NDims = 3\n", "NDims = 3\nTransformMatrix = 1 0 0 1 0 0 0 0 1\n"),
        ("NDims = 3\n", "NDims = 3\nCompressedData = True\n"),
        ("NDims = 3\n", "NDims = 3\nElementNumberOfChannels = 3\n"),
        ("NDims = 3\n", "NDims = 3\nElementNumberOfChannels = -1\n"),
        ("NDims = 3\n", "NDims = 3\nHeaderSize = 99\n"),
        ("ElementDataFile = LOCAL\n", ""),
    ],
)
def test_metaimage_headers_that_lie(tmp_path, old, new):
    assert old in METAIMAGE
    refused(tmp_path / "x.mha", METAIMAGE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2 3 4", "2 3"),
        ("2 3 4", "2 3 0"),
        ("2 3 4", "2 3 5"),
        ("2 3 4", "99999 99999 99999"),
        ("dimension: 3", "dimension: 99"),
        ("short", "block"),
        ("short", "complex"),
        ("raw", "hex"),
        ("raw", "gzip"),
        ("raw", "raw\nbyte skip: 10"),
        ("raw", "raw\nbyte skip: -7"),
        ("raw", "raw\nline skip: 3"),
        ("raw", "raw\nkinds: domain list"),
        ("raw", "raw\nkinds: list list domain"),
        ("raw", "raw\nspace: RAS\nspace directions: (1,0,0) (0,1,0) (0,0,0)"),
        ("raw", "raw\nspace: RAS\nspace directions: (1,0,0) (0,1,0) (0,nan,1)"),
        ("raw", "raw\nspace: RAS\nspace directions: (1,0,0) (0,1,0)"),
        ("raw", "raw\nspace: RAS\nspace directions: (1,0,0) (0,1,0) (0,1)"),
        ("raw", "raw\nspace dimension: 5\nspace directions: (1,0,0,0,0) (0,1,0,0,0) (0,0,1,0,0)"),
        ("raw", "raw\ntype: short"),
        ("encoding: raw\n", ""),
        ("NRRD0004", "NRRD"),
    ],
)
def test_nrrd_headers_that_lie(tmp_path, old, new):
    refused(tmp_path / "x.nrrd", NRRD.replace(old, new))


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("packed", [False, True])
def test_voxels_that_are_cut_or_damaged_or_too_many(tmp_path, suffix, packed):
    path = tmp_path / f"x{suffix}"
    values = np.random.default_rng(0).integers(0, 99, (3, 40, 50)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path), packed)
    content = path.read_bytes()
    refused(path, content[:-9])
    refused(path, content.replace(b"50 40 3", b"50 40 2"))
    refused(path, content.replace(b"50 40 3", b"50 40 4"))
    if packed:
        damaged = bytearray(content)
        damaged[-12] ^= 0xFF
        refused(path, bytes(damaged))


def test_endless_headers_end(tmp_path):
    for suffix, start in itertools.product((".mha", ".nrrd"), (b"NRRD0004\n", b"")):
        for filling in (b"a", b"a = b\n", b"a: b\n", b"\n", b"# \n"):
            path = tmp_path / f"x{suffix}"
            path.write_bytes(start + filling * (8 << 20))
            with pytest.raises(MedlightError):
                read(path)
