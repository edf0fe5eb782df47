"""TorchIO's own Queue over the files, with TorchIO's own transforms; each patch comes from its own augmented volume."""

from collections.abc import Iterator

import torch
import torchio as tio
from serve import BATCH, FOREGROUND, PATCH, arguments, serve


def transforms(full: bool) -> tio.Compose:
    """TorchIO's transforms, of the whole volume."""
    chain = [
        tio.ZNormalization(),
        tio.CropOrPad(PATCH, only_pad=True),
        tio.RandomAffine((0.7, 1.4), 0, isotropic=True, p=0.2),
        tio.RandomAffine((1, 1), 30, p=0.2),
        tio.RandomFlip((0, 1, 2)),
        tio.RandomNoise(std=(0, 0.3), p=0.1),
        tio.RandomBlur(std=(0.5, 1), p=0.2),
        tio.RandomAnisotropy(downsampling=(1, 2), p=0.25),
        tio.RandomGamma((-0.35, 0.4), p=0.3),
    ]
    if full:
        chain.insert(4, tio.RandomElasticDeformation(7, 4.0, 0, p=0.2))
        chain.insert(8, tio.RandomBiasField(0.3, p=0.15))
    return tio.Compose(chain)


def main() -> None:
    """Serve batches."""
    torch.set_num_threads(1)
    args = arguments()
    subjects = [
        tio.Subject(image=tio.ScalarImage(path), label=tio.LabelMap(args.labels / path.name))
        for path in sorted(args.images.glob("*.nii*"))
    ]
    queue = tio.Queue(
        tio.SubjectsDataset(subjects, transform=transforms(args.transforms == "full")),
        max_length=48,
        samples_per_volume=1,
        sampler=tio.LabelSampler(PATCH, "label", {0: 1 - FOREGROUND, 1: FOREGROUND / 2, 2: FOREGROUND / 2}),
        num_workers=args.workers,
    )

    def batches() -> Iterator[dict]:
        while True:
            yield from tio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0, drop_last=True)

    serve(batches(), lambda batch: batch["image"]["data"].shape)


if __name__ == "__main__":
    main()
