"""Losses that MONAI and torch lack: those of pre-training, over the samples of all ranks."""

from medlight.losses.gather import gather_with_gradient
from medlight.losses.ntxent import NTXent
from medlight.losses.vicreg import VICReg

__all__ = ["NTXent", "VICReg", "gather_with_gradient"]
