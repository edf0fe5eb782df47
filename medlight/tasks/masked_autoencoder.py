"""Learning by filling in what was hidden."""

from __future__ import annotations

import math
import zlib
from typing import Any, ClassVar, cast

import torch
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from torch import Tensor

from medlight import networks
from medlight.errors import UsageError
from medlight.tasks.base import Batch, Spec
from medlight.tasks.pretraining import PretrainingTask


class MaskedAutoencoderTask(PretrainingTask):
    """Hide blocks of an image and let the network tell what was there; the loss counts the hidden voxels alone.

    network, one of two kinds:

    - one that puts out images, as a U-Net (default MONAI's DynUNet): hidden blocks are set to 0, and it puts out the
      image's channels. All of it but the output layer is then there for a segmentation.
    - MONAI's ``MaskedAutoEncoderViT`` (He et al., CVPR 2022): its encoder sees the visible patches only. Fine-tuning a
      MONAI ``ViT`` with the same sizes (hidden_size, mlp_dim, num_layers, num_heads, patch_size) loads
      ``patch_embedding.*``, ``cls_token`` and ``blocks.*`` by name; the ViT's last ``norm`` (there ``blocks.<layers>``)
      and its ``classification_head`` begin anew, and the decoder has no counterpart.

    loss: on hidden voxels (M,) as they are predicted and as they were, default ``torch.nn.MSELoss``.
    mask_ratio: share of the blocks that is hidden, above 0 and below 1.
    block: voxels of a block along each axis; a ViT hides its own patches instead.
    The rest as for PretrainingTask. ``val/loss`` hides the same blocks of a patch at each validation. The probe costs
    one more pass through the encoder: features are those of images with nothing hidden (of a ViT: the mean over its
    patches).
    """

    default_network: ClassVar[Spec] = {"class_path": "monai.networks.nets.DynUNet", "init_args": {"res_block": True}}

    def __init__(self, mask_ratio: float = 0.6, block: int = 8, **common: Any) -> None:
        super().__init__(**common)
        if not 0 < mask_ratio < 1:
            raise UsageError(f"model.mask_ratio: {mask_ratio} is no share; write a number above 0 and below 1")
        if block < 1:
            raise UsageError(f"model.block: {block} is too small; write a whole number of at least 1")

    @property
    def outputs(self) -> list[str]:
        """Names of the image's channels."""
        return [str(name) for name in self.data["channels"]]

    def default_loss(self) -> Spec:
        """Mean squared error."""
        return {"class_path": "torch.nn.MSELoss", "init_args": {}}

    def configure_encoder(self) -> int:
        """Find where features are taken; refuse a network that can't fill in."""
        network, size = self.network, networks.spatial_size(self.data)
        assert network is not None
        image = torch.zeros(2, len(self.outputs), *size, device=next(network.parameters()).device)
        if isinstance(network, MaskedAutoEncoderViT):
            networks.freeze_unused(network, lambda: self._fill_in(image)[0])
            return int(network.cls_token.shape[-1])
        found = networks.output_shape(network, tuple(image.shape))
        if found != tuple(image.shape):
            said = f"gives {list(found[1:])} for patches of {list(image.shape[1:])}; take one that puts out images"
            raise UsageError(f"model.network: {type(network).__name__} {said}, or MaskedAutoEncoderViT")
        if math.prod(self._grid(size)) < 2:
            raise UsageError(f"model.block: {self.hparams['block']} is one block of a patch of {size}; make it smaller")
        self.place = networks.find_place(network, tuple(image.shape))
        networks.freeze_unused(network, lambda: self.run_network(image)[0])
        return self.place.width

    def encode(self, image: Tensor) -> Tensor:
        """Return the features (B, F) of images with nothing hidden."""
        if not isinstance(self.network, MaskedAutoEncoderViT):
            return super().encode(image)
        tokens = self.network.patch_embedding(image)
        tokens = torch.cat([self.network.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return cast(Tensor, self.network.blocks(tokens)[:, 1:].mean(dim=1))

    def learn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss on hidden voxels; features only where a probe looks at them."""
        loss = self._loss(*self._fill_in(batch["image"]))
        if self.probe is None:
            return loss, loss.detach()
        with self.evaluating():
            return loss, self.encode(batch["image"])

    def measure(self, batch: Batch) -> Batch:
        """Return each sample's loss (B,); what is hidden is drawn from the sample's content."""
        losses = []
        for image in batch["image"].split(1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(image.float().cpu().numpy().tobytes()))
                losses.append(self._loss(*self._fill_in(image)))
        return {"losses": torch.stack(losses)}

    def measured_loss(self, parts: Batch) -> Tensor:
        """Return the mean over the samples."""
        return parts["losses"].double().mean()

    def _loss(self, predicted: Tensor, truth: Tensor, hidden: Tensor) -> Tensor:
        assert self.loss is not None
        hidden = hidden.expand_as(truth)
        with torch.autocast(predicted.device.type, enabled=False):
            return cast(Tensor, self.loss(predicted.float()[hidden], truth.float()[hidden]))

    def _fill_in(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is predicted, what is true, and where it was hidden; what to hide is drawn on the CPU."""
        ratio = float(self.hparams["mask_ratio"])
        if isinstance(self.network, MaskedAutoEncoderViT):
            predicted, hidden = self.network(image, masking_ratio=ratio)
            return predicted, patches(image, self.network.patch_size), hidden.bool()[..., None]
        hidden = hide(len(image), self._grid(list(image.shape[2:])), ratio)
        for axis, n in enumerate(image.shape[2:], start=2):
            hidden = hidden.repeat_interleave(int(self.hparams["block"]), dim=axis).narrow(axis, 0, n)
        hidden = hidden.to(image.device)
        return self.run_network(image.masked_fill(hidden, 0.0))[0], image, hidden

    def _grid(self, size: list[int]) -> list[int]:
        """Blocks along each axis."""
        return [math.ceil(n / int(self.hparams["block"])) for n in size]


def hide(samples: int, grid: list[int], ratio: float) -> Tensor:
    """Return which blocks are hidden, bool (B, 1, *grid): the same number in each sample, at least one and not all."""
    total = math.prod(grid)
    count = min(max(round(ratio * total), 1), total - 1)
    ranks = torch.rand(samples, total).argsort(dim=1).argsort(dim=1)
    return (ranks < count).reshape(samples, 1, *grid)


def patches(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """Cut images (B, C, ...) into patches (B, N, P), in the order of a ViT's tokens."""
    for axis, n in enumerate(size, start=2):
        image = image.unfold(axis, n, n)
    image = image.flatten(2, 1 + len(size))  # (B, C, N, *size)
    return image.movedim(2, 1).flatten(2)
