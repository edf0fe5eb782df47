"""A scan in memory: voxels, where they lie in the patient, and what each channel shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Channel:
    """What one channel of a volume shows; ``None`` where it is not known.

    name: ``red``, ``green``, ``blue`` for colour. frame_time_ms: since the first frame. b_value: s/mm2, its gradient a
    unit vector in RAS+ (none for b = 0).
    """

    name: str = ""
    frame_time_ms: float | None = None
    b_value: float | None = None
    echo_time_ms: float | None = None
    gradient: tuple[float, float, float] | None = None


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan of any dimension.

    array: ``(C, I, J, K)``; a 2D image is ``(C, I, J, 1)``.
    affine: 4x4, voxel index to RAS+ millimetres (the convention of NIfTI, TorchIO and MONAI).
    channels: a descriptor for each of the C channels.
    meta: technical facts only, never a patient's identity.
    """

    array: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    channels: tuple[Channel, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.array.ndim != 4:
            raise ValueError(f"a Volume's array is (C, I, J, K), got shape {self.array.shape}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"a Volume's affine is 4x4, got {self.affine.shape}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along I, J, K."""
        return self.array.shape[1:]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along I, J, K in millimetres."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k
