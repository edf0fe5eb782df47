"""Fake scans: a bright head with brighter blobs in it, whose label map is the blobs; a function of the seed."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from medlight.scans import Volume, write_nifti


def affine(spacing=(1.0, 1.0, 1.0), codes="RAS", origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    """An affine whose axes point along ``codes``."""
    transform = nib.orientations.axcodes2ornt(tuple(codes))
    matrix = np.eye(4)
    matrix[:3, :3] = 0
    for axis, (world, sign) in enumerate(transform):
        matrix[int(world), axis] = sign * spacing[axis]
    matrix[:3, 3] = origin
    return matrix


def volume(shape=(24, 24, 24), labels=2, spacing=(1.0, 1.0, 1.0), seed=0, codes="RAS", channels=1):
    """A scan and its label map (uint8), as Volumes. Blob ``n`` is brighter with ``n``; no two overlap."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) * np.asarray(spacing)
    size = np.asarray(shape) * np.asarray(spacing)
    flat = [axis for axis in range(3) if shape[axis] == 1]
    label = np.zeros(shape, np.uint8)
    for value in range(1, labels + 1):
        centre = size * np.array([value / (labels + 1), *rng.uniform(0.35, 0.65, 2)])
        radius = size / (labels + 1) * rng.uniform(0.28, 0.48, 3)
        radius = np.maximum(radius, 1.2 * np.asarray(spacing))  # never without a voxel
        centre[flat], radius[flat] = 0, 1
        label[(((grid - centre) / radius) ** 2).sum(axis=-1) < 1] = value
    head = (((grid - size / 2) / (size * 0.48)) ** 2)[..., [a for a in range(3) if a not in flat]].sum(axis=-1) < 1
    image = np.where(head, 100.0, 0.0) + 60.0 * label
    scale = 10.0 ** rng.uniform(0, 1)
    images = [
        scale * ((n + 1) * ndimage.gaussian_filter(image, 0.6) + rng.normal(0, 8, shape)) for n in range(channels)
    ]
    place = affine(spacing, codes, rng.uniform(-50, 50, 3).round(2))
    return Volume(np.stack(images).astype(np.float32), place), Volume(label[None], place)


def folders(
    root, cases=4, shape=(24, 24, 24), labels=2, spacing=(1.0, 1.0, 1.0), seed=0, codes="RAS", channels=1
) -> Path:
    """Write ``root/images/case_00.nii.gz`` ... and the same names under ``labels``; returns root.

    ``shape`` varies by a few voxels from case to case (a 2D axis of one voxel stays so).
    """
    root = Path(root)
    for number in range(cases):
        size = tuple(n + (number % 3 if n > 1 else 0) for n in shape)
        image, label = volume(size, labels, spacing, seed * 1000 + number, codes, channels)
        write_nifti(image, root / "images" / f"case_{number:02d}.nii.gz")
        write_nifti(label, root / "labels" / f"case_{number:02d}.nii.gz")
    return root


def decathlon(root, cases=4, tests=1, **options) -> Path:
    """Write a task of the Medical Segmentation Decathlon: imagesTr, labelsTr, imagesTs, dataset.json; returns root."""
    root = folders(root, cases + tests, **options)
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (root / name).mkdir()
    names = [f"case_{number:02d}.nii.gz" for number in range(cases + tests)]
    for number, name in enumerate(names):
        (root / "images" / name).rename(root / ("imagesTr" if number < cases else "imagesTs") / name)
        if number < cases:
            (root / "labels" / name).rename(root / "labelsTr" / name)
        else:
            (root / "labels" / name).unlink()
    (root / "images").rmdir()
    (root / "labels").rmdir()
    blobs = {str(value): f"blob {value}" for value in range(1, options.get("labels", 2) + 1)}
    listed = {
        "name": "Fake",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", **blobs},
        "training": [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in names[:cases]],
        "test": [f"./imagesTs/{n}" for n in names[cases:]],
    }
    (root / "dataset.json").write_text(json.dumps(listed))
    return root


def medmnist(path, counts=(24, 8, 8), size=28, classes=2, multilabel=False, colour=False, depth=0, seed=0) -> Path:
    """Write an ``.npz`` in MedMNIST's layout: the brighter a picture's blob, the higher its class."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        shape = (depth or size, size, size) if depth else (size, size)
        targets = rng.integers(0, 2, (count, classes)) if multilabel else np.arange(count)[:, None] % classes
        images = rng.normal(40, 10, (count, *shape))
        level = targets.sum(axis=1) + 1
        middle = tuple(slice(n // 4, 3 * n // 4) for n in shape)
        images[(slice(None), *middle)] += 120 * level[:, *[None] * len(shape)] / (classes + 1)
        if colour:
            images = np.stack([images, images / 2, 255 - images], axis=-1)
        arrays[f"{split}_images"] = images.clip(0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = targets.astype(np.uint8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def manifest(path, rows: list[dict[str, object]]) -> Path:
    """Write rows as CSV (or JSON, by suffix)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
        return path
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


BAD = (
    "empty",
    "truncated",
    "text",
    "shape",
    "affine",
    "value",
    "fraction",
    "negative",
    "nan",
    "no_image",
    "no_label",
    "singular",
    "complex",
    "channels",
)


def spoil(root, name: str, kind: str) -> Path:
    """Make the case ``name`` of `folders` bad in one way of `BAD`; returns the file that is to be named."""
    image, label = Path(root) / "images" / f"{name}.nii.gz", Path(root) / "labels" / f"{name}.nii.gz"
    whole = nib.load(label)
    array, place = np.asarray(whole.dataobj), whole.affine
    if kind == "empty":
        image.write_bytes(b"")
        return image
    if kind == "truncated":
        image.write_bytes(gzip.compress(gzip.decompress(image.read_bytes())[:2000]))
        return image
    if kind == "text":
        image.write_text("not a scan")
        return image
    if kind == "no_image":
        image.unlink()
        return label
    if kind == "no_label":
        label.unlink()
        return image
    if kind == "nan":
        values = nib.load(image).get_fdata(dtype=np.float32).copy()
        values[3, 3, 3] = np.nan
        nib.save(nib.Nifti1Image(values, place), image)
        return image
    if kind == "complex":
        nib.save(nib.Nifti1Image(array.astype(np.complex64), place), image)
        return image
    if kind == "singular":
        header = nib.Nifti1Image(array, None).header
        header["sform_code"], header["srow_x"], header["srow_y"] = 1, [1, 0, 0, 0], [1, 0, 0, 0]
        nib.save(nib.Nifti1Image(array, None, header), image)
        return image
    shifted = place.copy()
    if kind == "shape":
        array = array[:-1]
    elif kind == "affine":
        shifted[0, 3] += 3.0
    elif kind == "value":
        array = np.where(array == 1, 77, array)
    elif kind == "fraction":
        array = array.astype(np.float32) * 0.5
    elif kind == "negative":
        array = -array.astype(np.int16)
    elif kind == "channels":
        array = np.stack([array, array], axis=-1)
    nib.save(nib.Nifti1Image(array, shifted), label)
    return label
