"""Mutants of NIfTI, NRRD, MetaImage and plain images: a volume or a named refusal, in bounded time and memory."""

from __future__ import annotations

import os
import random
import resource
import time

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from PIL import Image

from medlight.errors import MedlightError
from medlight.scans import read
from medlight.scans.headers import facts

SPLICES = (b"9999999999", b"-1", b"nan", b"1e999", b"0", b"/etc/passwd", b"..", b"%s", b"\n", b"inf", b"\0", b" ")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """One sound file of every kind, in a folder."""
    folder = tmp_path_factory.mktemp("seeds")
    rng = np.random.default_rng(0)
    values = (rng.random((6, 5, 7)) * 1000).astype(np.int16)
    for name in ("a.nii", "a.nii.gz"):
        image = nib.Nifti1Image(values, np.diag([1, 2, 3, 1.0]))
        image.set_qform(image.affine, code=1)
        nib.save(image, folder / name)
    nib.save(nib.Nifti2Image(values, np.eye(4)), folder / "two.nii")
    for name, packed in (("a.mha", 0), ("b.mha", 1), ("a.nrrd", 0), ("b.nrrd", 1)):
        sitk.WriteImage(sitk.GetImageFromArray(values), str(folder / name), bool(packed))
    colour = (rng.random((20, 30, 3)) * 255).astype(np.uint8)
    for name, options in (
        ("a.png", {}),
        ("a.jpg", {}),
        ("a.tif", {}),
        ("lzw.tif", {"compression": "tiff_lzw"}),
        ("jpeg.tif", {"compression": "jpeg"}),
    ):
        Image.fromarray(colour).save(folder / name, **options)
    deep = sitk.GetImageFromArray((rng.random((20, 30, 3)) * 60000).astype(np.uint16), isVector=True)
    for name in ("deep.png", "deep.tif"):
        sitk.WriteImage(deep, str(folder / name))
    tifffile.imwrite(folder / "pages.tif", values.astype(np.uint16), photometric="minisblack")
    return sorted(folder.iterdir())


def mutant(content, chance):
    """Change a file in one of the ways that disks, networks and people do."""
    made = bytearray(content)
    head = min(len(made), 400)
    match chance.randrange(6):
        case 0:
            for _ in range(chance.randrange(1, 20)):
                made[chance.randrange(len(made))] = chance.randrange(256)
        case 1:
            del made[chance.randrange(len(made)) :]
        case 2:
            at = chance.randrange(head)
            made[at:at] = chance.randbytes(chance.randrange(1, 30))
        case 3:
            for _ in range(chance.randrange(1, 4)):
                made[chance.randrange(head)] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        case 4:
            at = chance.randrange(head)
            made[at : at + chance.randrange(1, 5)] = chance.choice(SPLICES)
        case _:
            made += chance.randbytes(chance.randrange(1, 5000))
    return bytes(made)


def attempt(path):
    """Read a file; what comes back must hold together, and agree with what its header said."""
    row = facts(path)
    deep = facts(path, deep=True)
    try:
        volume = read(path)
    except MedlightError as error:
        said = str(error)
        assert f"{path}: " in said
        assert deep["status"] in ("unreadable", "affine")
        assert "\n" not in said + deep["detail"]
        return
    assert deep["status"] in ("ok", "nan")
    assert np.isfinite(volume.affine).all()
    assert abs(np.linalg.det(volume.affine)) > 0
    assert [len(volume.array), *volume.shape] == [row["channels"], *row["shape"]]
    assert len(volume.channels) == len(volume.array)
    assert min(volume.array.shape) > 0


def rounds(seeds, folder, count, start):
    chance = random.Random(start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        seed = chance.choice(seeds)
        path = folder / f"mutant-{seed.name}"
        path.write_bytes(mutant(seed.read_bytes(), chance))
        began = time.monotonic()
        attempt(path)
        assert time.monotonic() - began < 5, path
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500 << 10  # kilobytes


def test_mutants(seeds, tmp_path):
    rounds(seeds, tmp_path, 300, 1)


@pytest.mark.slow
@pytest.mark.parametrize("start", [2, 3, 4])
def test_many_mutants(seeds, tmp_path, start):
    rounds(seeds, tmp_path, 1500, start)


def test_every_way_of_being_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")  # reading one would wait for ever
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    (tmp_path / "gone.mha").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.nii").mkdir()
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(MedlightError) as caught:
            read(path)
        assert str(path) in str(caught.value)
