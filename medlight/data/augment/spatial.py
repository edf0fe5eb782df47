"""RandomSpatial: scaling, rotation, translation, elastic deformation and flips in one resampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torchio as tio
from torchio.transforms.augmentation import RandomTransform

from medlight.data.augment.movement import Matrix, Movement
from medlight.data.augment.resampling import Source, move
from medlight.data.patches import Triple, Window

Range = float | tuple[float, float] | tuple[float, float, float] | tuple[float, float, float, float, float, float]


class RandomSpatial(RandomTransform, tio.SpatialTransform):
    """Scale, rotate, shift, deform and flip in one resampling: linear for images, nearest for label maps.

    Does what ``tio.RandomAffine``, ``tio.RandomElasticDeformation`` and ``tio.RandomFlip`` would do one after another,
    with their conventions; on training patches it also reads no more of the scan than the drawn movement needs.
    2D images (one voxel along the third axis) stay in their plane. Leaves no history in the subject.

    Args:
        scales, degrees, translation, isotropic: as in ``tio.RandomAffine`` (factors, degrees, mm along RAS axes);
            around the middle of the patch.
        num_control_points: of the elastic field, along each axis of the patch; at least 4, as in TorchIO.
        max_displacement: largest displacement of a control point along each axis in mm; 0 for no elastic deformation.
            Points at the patch's border move too (TorchIO's ``locked_borders=0``): it isn't the border of the scan.
        axes, flip_probability: axes that may be flipped, each with this probability; as in ``tio.RandomFlip``.
        scale_probability, rotation_probability, elastic_probability: how often each is done where the transform is
            applied at all (``p``); TorchIO's own transforms take these as their ``p``.
        default_pad_value: what lies outside of the scan: a number, or ``"minimum"`` for each channel's smallest value.
            0 by default, which is what patches that reach over the scan's border and sliding-window inference have.
        kwargs: ``p``, ``copy``, ``include``, ``exclude``, ... of ``tio.Transform``.
    """

    def __init__(
        self,
        scales: Range = 0.1,
        degrees: Range = 10.0,
        translation: Range = 0.0,
        isotropic: bool = False,
        num_control_points: int | tuple[int, int, int] = 7,
        max_displacement: float | tuple[float, float, float] = 0.0,
        axes: tuple[int, ...] = (),
        flip_probability: float = 0.5,
        scale_probability: float = 1.0,
        rotation_probability: float = 1.0,
        elastic_probability: float = 1.0,
        default_pad_value: float | str = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # TorchIO's own transforms check the ranges and say what is wrong with them.
        affine = tio.RandomAffine(scales, degrees, translation, isotropic)
        elastic = tio.RandomElasticDeformation(num_control_points, max_displacement, locked_borders=0)
        self.scales, self.degrees, self.translation = affine.scales, affine.degrees, affine.translation
        self.isotropic = isotropic
        self.num_control_points = elastic.num_control_points
        self.max_displacement = elastic.max_displacement
        self.axes = tio.RandomFlip(tuple(axes)).axes if axes else ()
        if any(isinstance(axis, str) for axis in self.axes):
            raise ValueError(f"axes are numbers from 0 to 2, not {self.axes}")
        self.flip_probability = self.parse_probability(flip_probability)
        self.scale_probability = self.parse_probability(scale_probability)
        self.rotation_probability = self.parse_probability(rotation_probability)
        self.elastic_probability = self.parse_probability(elastic_probability)
        if isinstance(default_pad_value, str) and default_pad_value != "minimum":
            raise ValueError(f'default_pad_value is a number or "minimum", not {default_pad_value!r}')
        self.default_pad_value = default_pad_value

    def get_params(self, size: Triple, affine: Matrix) -> Movement:
        """Draw a movement for a window of ``size`` voxels of an image with this 4x4 affine."""
        flat = size[2] == 1
        scales, degrees, translation, flips, elastic = self._draw(flat)
        to_mm = affine[:3, :3]
        to_voxels = np.linalg.inv(to_mm)
        rotation = _rotation(degrees)
        # TorchIO maps a point x to c + S (R (x - c) + t); the source of an output is the inverse of that.
        back = to_voxels @ rotation.T / scales @ to_mm
        shift = -to_voxels @ rotation.T @ translation
        if flat:
            back[2], back[:, 2] = (0, 0, 1), (0, 0, 1)
            shift[2] = 0
        control = None
        if elastic is not None:
            control = elastic @ (back @ to_voxels).T
            if flat:
                control[..., 2] = 0
        back, shift = _exact(back), _exact(shift)
        return Movement(back * flips, shift, control if control is None else _flip_control(control, flips))

    def _draw(self, flat: bool) -> tuple[Matrix, Matrix, Matrix, Matrix, Matrix | None]:
        """Draw scales, degrees, translation in mm, flips (1 or -1) and control displacements in mm."""
        chance = torch.rand(6).tolist()
        low, high = torch.tensor([*self.scales, *self.degrees, *self.translation], dtype=torch.float64).view(9, 2).T
        values = (low + (high - low) * torch.rand(9, dtype=torch.float64)).numpy()
        scales, degrees, translation = values[:3], values[3:6], values[6:]
        if self.isotropic:
            scales[:] = scales[0]
        if chance[0] >= self.scale_probability:
            scales[:] = 1
        if chance[1] >= self.rotation_probability:
            degrees[:] = 0
        if flat:
            scales[2] = 1
            degrees[:2] = 0
        flips = np.ones(3)
        for axis in self.axes:
            if chance[3 + axis] < self.flip_probability and not (flat and axis == 2):
                flips[axis] = -1
        if not any(self.max_displacement) or chance[2] >= self.elastic_probability:
            return scales, degrees, translation, flips, None
        field = torch.rand(*self.num_control_points, 3, dtype=torch.float64).mul_(2).sub_(1).numpy()
        return scales, degrees, translation, flips, field * np.asarray(self.max_displacement)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Move all images of a subject, which share one grid, within the space they occupy."""
        images = self.get_images(subject)
        if not images:
            return subject
        subject.check_consistent_spatial_shape()
        size = images[0].spatial_shape
        movement = self.get_params(size, images[0].affine)
        return self.move(subject, movement, Window((0, 0, 0), size))

    def move(self, subject: tio.Subject, movement: Movement, window: Window) -> tio.Subject:
        """Replace the subject's images by their moved window (in voxels of the present images)."""
        images = self.get_images(subject)
        sources = [
            Source(image.data, True)
            if isinstance(image, tio.LabelMap)
            else Source(image.data.float(), False, self._pad_value(image.data))
            for image in images
        ]
        for image, moved in zip(images, move(sources, movement, window), strict=True):
            image.set_data(moved)
        return subject

    def _pad_value(self, data: torch.Tensor) -> float | torch.Tensor:
        if isinstance(self.default_pad_value, str):
            return data.float().amin(dim=(1, 2, 3), keepdim=True)
        return float(self.default_pad_value)


def _rotation(degrees: Matrix) -> Matrix:
    """Rotation about the RAS axes: y first, then x, then z (ITK's Euler angles, as TorchIO uses them)."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def _exact(values: Matrix) -> Matrix:
    """Take rounding errors off, so that what is a plain flip or scaling is known as such."""
    nearest = np.rint(values)
    return np.where(np.abs(values - nearest) < 1e-9, nearest, values)


def _flip_control(control: Matrix, flips: Matrix) -> Matrix:
    axes = tuple(axis for axis in range(3) if flips[axis] < 0)
    return np.flip(control, axes) if axes else control
