"""Quick forms of TorchIO's slow intensity transforms: same names, arguments, ranges and results, computed per axis."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchio as tio
from scipy import ndimage

from medlight.data.augment.resampling import along_axes

Array = npt.NDArray[np.float64]


class RandomBiasField(tio.RandomBiasField):
    """TorchIO's bias field (a polynomial over the image, exponentiated; Van Leemput et al. 1999), 50 times as fast.

    Same arguments and same field for the same coefficients; one field for all channels of an image, as in TorchIO.
    Leaves no history in the subject.
    """

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Multiply each image by a random field."""
        for image in self.get_images(subject):
            coefficients = self.get_params(self.order, self.coefficients_range)
            field = _polynomial(coefficients, self.order, tuple(image.spatial_shape))
            image.set_data(image.data * field.exp_())
        return subject


@lru_cache(maxsize=16)
def _powers(size: int, order: int) -> torch.Tensor:
    """``(size, order + 1)`` powers of a coordinate that goes from about -1 to 1 over an axis."""
    at = np.arange(size) - (size - 1) / 2
    at = at / at.max() if size > 1 else at
    return torch.from_numpy(np.vander(at, order + 1, increasing=True).astype(np.float32))


def _polynomial(coefficients: list[float], order: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Sum of ``coefficient * x^a y^b z^c`` over ``a + b + c <= order``, of the image's shape."""
    cube = np.zeros((order + 1,) * 3, dtype=np.float32)
    exponents = np.indices(cube.shape).sum(axis=0)
    cube[exponents <= order] = coefficients  # in the order of three nested loops, as TorchIO draws them
    x, y, z = (_powers(size, order) for size in shape)
    over_z = torch.from_numpy(cube) @ z.T  # (a, b, K)
    over_y = y @ over_z  # (a, J, K)
    return (x @ over_y.flatten(1)).view(shape)


class RandomNoise(tio.RandomNoise):
    """TorchIO's Gaussian noise, drawn from the present stream; TorchIO seeds all devices anew for it, at 0.2 ms.

    Same arguments. Leaves no history in the subject.
    """

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Add noise of random mean and standard deviation to each image."""
        for image in self.get_images(subject):
            mean, std = self.sample_uniform(*self.mean_range), self.sample_uniform(*self.std_range)
            image.set_data(torch.randn(image.data.shape).mul_(std).add_(mean).add_(image.data))
        return subject


class RandomBlur(tio.RandomBlur):
    """TorchIO's Gaussian blur as one small matrix product an axis: equal to ``scipy.ndimage.gaussian_filter``.

    Axes longer than 192 voxels, where a matrix is no longer small, go through scipy. Leaves no history.
    """

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Blur each image by random widths in mm."""
        for image in self.get_images(subject):
            widths = np.asarray(self.get_params(self.std_ranges)) / np.asarray(image.spacing)
            image.set_data(_blur(image.data.float(), widths))
        return subject


def _blur(image: torch.Tensor, widths: Array) -> torch.Tensor:
    if max(image.shape[1:]) > 192:
        blurred = [ndimage.gaussian_filter(channel.numpy(), widths) for channel in image]
        return torch.from_numpy(np.stack(blurred))
    return along_axes(image, [_gaussian(n, s) for n, s in zip(image.shape[1:], widths, strict=True)])


def _gaussian(size: int, width: float) -> torch.Tensor | None:
    """Matrix of a Gaussian filter over one axis whose border is mirrored."""
    if size == 1 or width < 1e-15:
        return None
    return torch.from_numpy(ndimage.gaussian_filter1d(np.eye(size), width, axis=0).astype(np.float32))


class RandomAnisotropy(tio.RandomAnisotropy):
    """TorchIO's low resolution (fewer samples along one axis, then linear interpolation back), 10 times as fast.

    Same arguments, but for ``scalars_only`` and ``image_interpolation``: label maps are left alone and interpolation is
    linear, TorchIO's defaults. Beyond the outermost coarse sample its value goes on, where TorchIO's has a margin of
    zeros. Leaves no history.
    """

    def __init__(
        self,
        axes: int | tuple[int, ...] = (0, 1, 2),
        downsampling: float | tuple[float, float] = (1.5, 5.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(axes, downsampling, **kwargs)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Lower the resolution of all images along one random axis by one random factor."""
        images = self.get_images(subject)
        if not images:
            return subject
        flat = images[0].is_2d()
        axes = tuple(axis for axis in self.axes if not (flat and axis == 2))
        axis, factor = self.get_params(axes, self.downsampling_range)
        for image in images:
            matrices: list[torch.Tensor | None] = [None, None, None]
            matrices[axis] = _coarse(image.spatial_shape[axis], factor)
            image.set_data(along_axes(image.data.float(), matrices))
        return subject

    def get_images(self, subject: tio.Subject) -> list[tio.ScalarImage]:
        """Images that hold intensities."""
        return subject.get_images(intensity_only=True, include=self.include, exclude=self.exclude)


def _coarse(size: int, factor: float) -> torch.Tensor:
    """Matrix that samples an axis ``factor`` times as coarsely (nearest voxel) and interpolates back (linear)."""
    count = max(int(size / factor), 1)
    # The coarse samples lie evenly about the middle of the axis, `factor` voxels apart.
    centres = (np.arange(count) - (count - 1) / 2) * factor + (size - 1) / 2
    picked = np.floor(centres + 0.5).astype(int).clip(0, size - 1)
    at = ((np.arange(size) - centres[0]) / factor).clip(0, count - 1)
    low = np.minimum(at.astype(int), max(count - 2, 0))
    high = np.minimum(low + 1, count - 1)
    matrix = np.zeros((size, size), dtype=np.float32)
    np.add.at(matrix, (np.arange(size), picked[low]), 1 - (at - low))
    np.add.at(matrix, (np.arange(size), picked[high]), at - low)
    return torch.from_numpy(matrix)
