"""A plain training loop for the hippocampus cases: what a careful student writes in an afternoon.

    MEDLIGHT_DATA=... python benchmarks/peers/plain_loop.py SPLIT.json OUT.json [--minutes 15] [--seed 0]

Trains MONAI's UNet on the split's train and val cases together and measures the mean foreground Dice on its test cases.
"""

import argparse
import json
import os
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import Compose, RandAffined, RandGaussianNoised, RandSpatialCropd, SpatialPadd
from monai.utils import set_determinism

SIZE = (40, 56, 40)


def load(root: Path, case: str) -> dict[str, torch.Tensor]:
    """Read a case: the image by its z-score, (1, I, J, K), and its label map."""
    image = nib.load(root / "images" / f"{case}.nii.gz").get_fdata(dtype=np.float32)
    label = np.asarray(nib.load(root / "labels" / f"{case}.nii.gz").dataobj).astype(np.float32)
    image = (image - image.mean()) / image.std()
    return {"image": torch.from_numpy(image)[None], "label": torch.from_numpy(label)[None]}


def main() -> None:
    """Train for some minutes, then measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("split", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_determinism(args.seed)
    root = Path(os.environ["MEDLIGHT_DATA"]) / "hippocampus"
    split = json.loads(args.split.read_text())
    train = [load(root, case) for case in split["train"] + split["val"]]
    keys = ["image", "label"]
    augment = Compose(
        [
            SpatialPadd(keys, SIZE),
            RandAffined(keys, prob=0.5, rotate_range=[0.2] * 3, scale_range=[0.15] * 3, mode=("bilinear", "nearest")),
            RandSpatialCropd(keys, SIZE, random_size=False),
            RandGaussianNoised("image", prob=0.3, std=0.1),
        ]
    )
    net = UNet(3, 1, 3, (24, 48, 96, 192), (2, 2, 2), num_res_units=2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    loss_function = DiceCELoss(softmax=True, to_onehot_y=True)
    draw = np.random.default_rng(args.seed)
    start, steps = time.time(), 0
    while time.time() - start < 60 * args.minutes:
        batch = [augment(train[i]) for i in draw.choice(len(train), 6, replace=False)]
        image, label = (torch.stack([torch.as_tensor(item[key]) for item in batch]) for key in keys)
        loss = loss_function(net(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    minutes = (time.time() - start) / 60
    net.eval()
    dice = {}
    for case in split["test"]:
        item = load(root, case)
        with torch.no_grad():
            found = sliding_window_inference(item["image"][None], SIZE, 1, net, overlap=0.5).argmax(1)[0]
        pairs = [(found == v, item["label"][0] == v) for v in (1, 2)]
        dice[case] = [float(2 * (a & b).sum() / (a.sum() + b.sum())) for a, b in pairs]
    mean = float(np.mean(list(dice.values())))
    figures = {"dice": mean, "minutes": minutes, "steps": steps, "seed": args.seed, "cases": dice}
    args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"mean foreground Dice {mean:.4f} on {len(dice)} cases after {steps} steps in {minutes:.1f} min")


if __name__ == "__main__":
    main()
