"""nnU-Net's own data loader and batchgeneratorsv2, over cases saved as nnU-Net's preprocessing saves them.

Runs in an environment of its own: pip install torch nnunetv2 batchgeneratorsv2.
"""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from serve import BATCH, FOREGROUND, PATCH, arguments, serve

ROTATION = (-np.pi / 6, np.pi / 6)


def prepare(images: Path, labels: Path, folder: Path) -> None:
    """Write each case, z-scored, as nnU-Net's preprocessing does (it has 1 mm voxels already)."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks, chunks = comp_blosc2_params((1, 36, 50, 35), PATCH)
    for path in sorted(images.glob("*.nii*")):
        name = str(folder / path.name.split(".")[0])
        if os.path.exists(f"{name}.pkl"):
            continue
        image = nib.load(path).get_fdata(dtype=np.float32)[None]
        label = np.asarray(nib.load(labels / path.name).dataobj).astype(np.int16)[None]
        places = DefaultPreprocessor._sample_foreground_locations(label, [1, 2])
        image = (image - image.mean()) / image.std()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nnUNetDatasetBlosc2.save_case(image, label, {"class_locations": places}, name, chunks=chunks, blocks=blocks)


def transforms(full: bool) -> object:
    """nnU-Net's training transforms; ``full`` adds its elastic deformation (it has no bias field).

    Brightness and contrast are taken out, and gamma on inverted images, which the others don't have; labels are
    resampled by nearest neighbour as the others do: all of it makes the peer quicker.
    """
    chain = nnUNetTrainer.get_training_transforms(np.array(PATCH), ROTATION, None, (0, 1, 2), False)
    spatial = chain.transforms[0]
    assert isinstance(spatial, SpatialTransform)
    spatial.mode_seg = "nearest"
    if full:
        spatial.p_elastic_deform, spatial.elastic_deform_magnitude = 0.2, (0, 4)
    kept = [t for t in chain.transforms if not _dropped(getattr(t, "transform", t))]
    chain.transforms = kept
    return chain


def _dropped(transform: object) -> bool:
    name = type(transform).__name__
    inverted = name == "GammaTransform" and transform.p_invert_image == 1
    return name in ("MultiplicativeBrightnessTransform", "ContrastTransform") or inverted


def main() -> None:
    """Serve batches."""
    torch.set_num_threads(1)
    args = arguments()
    folder = args.cache / "nnunet"
    prepare(args.images, args.labels, folder)
    loader = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder)),
        BATCH,
        get_patch_size(np.array(PATCH), ROTATION, ROTATION, ROTATION, (0.85, 1.25)),
        PATCH,
        LabelManager({"background": 0, "anterior": 1, "posterior": 2}, None),
        oversample_foreground_percent=FOREGROUND,
        transforms=transforms(args.transforms == "full"),
    )
    if args.workers:
        source: Iterator[dict] = NonDetMultiThreadedAugmenter(loader, None, args.workers, num_cached=6, wait_time=0.002)
    else:
        source = SingleThreadedAugmenter(loader, None)
    serve(source, lambda batch: batch["data"].shape)


if __name__ == "__main__":
    main()
