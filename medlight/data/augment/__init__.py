"""TorchIO-compatible transforms that are quick on training patches."""

from medlight.data.augment.intensity import RandomAnisotropy, RandomBiasField, RandomBlur, RandomNoise
from medlight.data.augment.spatial import RandomSpatial

__all__ = ["RandomAnisotropy", "RandomBiasField", "RandomBlur", "RandomNoise", "RandomSpatial"]
