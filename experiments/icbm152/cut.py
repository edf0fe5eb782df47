"""Cut the ICBM 2009a T1 template that nilearn carries into training and validation cases.

One averaged head, so this study proves that the plumbing works and nothing about a model. The template is exactly
mirror-symmetric: left against right would leak the answer, so training cases lie at the back of the head, validation
cases at the front, with a margin between them that no case touches.

    python experiments/icbm152/cut.py OUT

writes OUT/images/*.nii.gz, OUT/labels/*.nii.gz (0 background, 1 grey matter, 2 white matter) and OUT/split.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

BACK = slice(10, 115)  # training
FRONT = slice(139, 223)  # validation; 24 mm lie between the two
BLOCKS = {
    "left-low": (slice(8, 98), slice(10, 92)),
    "right-low": (slice(98, 188), slice(10, 92)),
    "left-high": (slice(8, 98), slice(92, 174)),
    "right-high": (slice(98, 188), slice(92, 174)),
}


def main(out: Path) -> None:
    """Write the cases under ``out``."""
    head = load_mni152_template(resolution=1)
    grey = load_mni152_gm_template(resolution=1).get_fdata()
    white = load_mni152_wm_template(resolution=1).get_fdata()
    tissue = np.where(grey + white < 0.5, 0, np.where(grey >= white, 1, 2)).astype(np.uint8)
    voxels = head.get_fdata(dtype=np.float32)
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    split: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for part, depth in (("train", BACK), ("val", FRONT)):
        for block, (width, height) in BLOCKS.items():
            name = f"{'back' if part == 'train' else 'front'}-{block}"
            corner = np.array([width.start, depth.start, height.start, 1])
            affine = head.affine.copy()
            affine[:, 3] = head.affine @ corner
            region = (width, depth, height)
            nib.save(nib.Nifti1Image(voxels[region], affine), out / "images" / f"{name}.nii.gz")
            nib.save(nib.Nifti1Image(tissue[region], affine), out / "labels" / f"{name}.nii.gz")
            split[part].append(name)
    (out / "split.json").write_text(json.dumps(split, indent=1) + "\n")
    print(f"{sum(map(len, split.values()))} cases in {out}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python cut.py OUT")
    main(Path(sys.argv[1]))
