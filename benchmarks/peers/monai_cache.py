"""MONAI's CacheDataset, everything up to the first random transform in memory, with its equivalent transforms."""

from collections.abc import Iterator

import torch
from monai import transforms as mt
from monai.data import CacheDataset, DataLoader
from serve import BATCH, FOREGROUND, PATCH, arguments, serve

BOTH = ["image", "label"]
MODES = ("bilinear", "nearest")


def transforms(full: bool) -> mt.Compose:
    """MONAI's transforms, from the file on."""
    chain = [
        mt.LoadImaged(BOTH),
        mt.EnsureChannelFirstd(BOTH),
        mt.NormalizeIntensityd("image"),
        mt.SpatialPadd(BOTH, PATCH),
        mt.EnsureTyped(BOTH, track_meta=False),
        mt.RandCropByPosNegLabeld(BOTH, "label", PATCH, pos=FOREGROUND, neg=1 - FOREGROUND, num_samples=1),
        mt.RandAffined(BOTH, prob=0.2, scale_range=[(-0.3, 0.4)] * 3, mode=MODES, padding_mode="zeros"),
        mt.RandAffined(BOTH, prob=0.2, rotate_range=[0.524] * 3, mode=MODES, padding_mode="zeros"),
        *[mt.RandFlipd(BOTH, 0.5, axis) for axis in range(3)],
        mt.RandGaussianNoised("image", 0.1, std=0.3),
        mt.RandGaussianSmoothd("image", *[(0.5, 1)] * 3, prob=0.2),
        mt.RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1)),
        mt.RandAdjustContrastd("image", 0.3, (0.7, 1.5)),
    ]
    if full:
        elastic = mt.Rand3DElasticd(BOTH, (5, 7), (100, 200), prob=0.2, mode=MODES, padding_mode="zeros")
        chain.insert(8, elastic)
        chain.insert(14, mt.RandBiasFieldd("image", 3, (0, 0.3), prob=0.15))
    return mt.Compose(chain)


def main() -> None:
    """Serve batches."""
    torch.set_num_threads(1)
    args = arguments()
    files = [{"image": str(path), "label": str(args.labels / path.name)} for path in sorted(args.images.glob("*.nii*"))]
    dataset = CacheDataset(files, transforms(args.transforms == "full"), progress=False)
    loader = DataLoader(
        dataset,
        args.workers,
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        persistent_workers=args.workers > 0,
    )

    def batches() -> Iterator[dict]:
        while True:
            yield from loader

    serve(batches(), lambda batch: batch["image"].shape)


if __name__ == "__main__":
    main()
