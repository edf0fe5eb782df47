"""medlight's ScanDataModule, as a study's YAML would have it."""

from collections.abc import Iterator

import torch
import torchio as tio
from serve import BATCH, FOREGROUND, PATCH, arguments, serve

from medlight.data import Patch, ScanDataModule
from medlight.data.augment import RandomAnisotropy, RandomBiasField, RandomBlur, RandomNoise, RandomSpatial
from medlight.prepare import ImageFolders, RandomSplit


def transforms(full: bool) -> list[tio.Transform]:
    """The transforms of a study."""
    spatial = RandomSpatial(
        scales=(0.7, 1.4),
        isotropic=True,
        degrees=30,
        max_displacement=4 if full else 0,
        axes=(0, 1, 2),
        scale_probability=0.2,
        rotation_probability=0.2,
        elastic_probability=0.2,
    )
    chain = [spatial, RandomNoise(std=(0, 0.3), p=0.1), RandomBlur(std=(0.5, 1), p=0.2)]
    if full:
        chain.append(RandomBiasField(0.3, p=0.15))
    return [*chain, RandomAnisotropy(downsampling=(1, 2), p=0.25), tio.RandomGamma((-0.35, 0.4), p=0.3)]


def batches(data: ScanDataModule) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of one epoch after the other."""
    loader, epoch = data.train_dataloader(), 0
    while True:
        loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def main() -> None:
    """Serve batches."""
    torch.set_num_threads(1)
    args = arguments()
    data = ScanDataModule(
        ImageFolders(str(args.images), str(args.labels)),
        RandomSplit(val=0.0),
        patch=Patch(list(PATCH), FOREGROUND),
        augment=transforms(args.transforms == "full"),
        batch_size=BATCH,
        steps_per_epoch=1000,
        workers=args.workers,
        store_dir=str(args.cache / "store"),
    )
    data.prepare_data()
    data.setup("fit")
    serve(batches(data), lambda batch: batch["image"].shape)


if __name__ == "__main__":
    main()
