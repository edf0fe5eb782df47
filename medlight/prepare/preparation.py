"""Preparation: one case, read, checked, oriented and resampled in the scanner's own values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medlight.errors import CaseError, MedlightError, UsageError
from medlight.prepare.case import Case, Label
from medlight.prepare.checks import check_images, checked_label, named
from medlight.prepare.interpolate import Shape
from medlight.prepare.reading import colours, read_label_ref, read_ref
from medlight.prepare.resample import spaced_grid, to_grid
from medlight.prepare.statistics import statistics
from medlight.prepare.voxels import foreground
from medlight.scans import Volume, reorient
from medlight.scans.orientation import Affine
from medlight.scans.values import values_of

if TYPE_CHECKING:
    from medlight.scans.dicom.mend import Mends


@dataclass(frozen=True, eq=False)
class PreparedArrays:
    """One prepared case.

    image: float32 ``(C, I, J, K)`` in the scanner's own values. label: uint8 or uint16 ``(I, J, K)``, or None.
    stats: one entry a channel, see `statistics.statistics`. foreground: voxel indices ``(N, 3)`` of each label value
    other than 0, at most 10 000 of them, drawn with a fixed seed. values: label values before resampling. frames: of a
    clip, which lie along K; 0 where it is none. mended: what was mended in the images, a line each. modalities: those
    that the images' files tell (DICOM's do): ``CT``, ``MR``, ... spacings: voxel sizes (mm, along the axes of the
    preparation's orientation) that the images after the first had, by their names.
    """

    image: npt.NDArray[np.float32]
    label: npt.NDArray[Any] | None
    affine: Affine
    channels: tuple[str, ...]
    stats: list[dict[str, Any]]
    original_affine: Affine
    original_shape: Shape
    foreground: dict[int, npt.NDArray[np.int32]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    values: tuple[int, ...] = ()
    frames: int = 0
    mended: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    spacings: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Preparation:
    """How scans are brought onto a common footing.

    spacing: voxel size in millimetres along the axes of ``orientation``; None keeps each scan's own. An axis of one
    voxel (2D images) keeps its own in any case.
    orientation: where the axes point, RAS for right, anterior, superior.
    anisotropy_threshold: a thick axis, with voxels more than this many times as long as the shortest, is resampled
    linearly (images) or by the nearest slice (labels), apart from the others.
    frames: what the frames of a 4D scan (time points, b-values, echoes) become: channels, or, where each is a single
    slice, a clip: they lie along K, and are neither turned nor resampled along it.
    on: what to do with a DICOM series that is no regular volume, instead of refusing it: gap, uneven, tilt, duplicate
    as in `medlight.scans.dicom.mend.Mends`.
    """

    spacing: list[float] | None = None
    orientation: str = "RAS"
    anisotropy_threshold: float = 3.0
    frames: Literal["channels", "clip"] = "channels"
    on: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        good = self.spacing is None or (len(self.spacing) == 3 and all(np.isfinite(s) and s > 0 for s in self.spacing))
        if not good:
            raise UsageError(f"spacing: {self.spacing} must be three lengths in millimetres, or null")
        if (
            not (len(self.orientation) == 3 and re.fullmatch("[LRAPSI]{3}", self.orientation))
            or len({"LRAPSI".index(code) // 2 for code in self.orientation}) != 3
        ):
            raise UsageError(f"orientation: {self.orientation!r} must be one each of L/R, A/P and S/I, such as 'RAS'")
        if not self.anisotropy_threshold >= 1:
            raise UsageError(f"anisotropy_threshold: {self.anisotropy_threshold} must be at least 1")
        if self.frames not in ("channels", "clip"):
            raise UsageError(f"frames: {self.frames!r} is none of channels, clip")
        _ = self.mends

    @property
    def mends(self) -> Mends | None:
        """What is mended, if anything is; UsageError for a mend that there is not."""
        if not self.on:
            return None
        from medlight.scans.dicom.mend import Mends

        return Mends.from_mapping(self.on)

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that build an equal preparation, as plain values; the store's key is made of them.

        What is as it was before there was a choice is left out, so that what was prepared then is found again.
        """
        spacing = None if self.spacing is None else [float(size) for size in self.spacing]
        whole = {**asdict(self), "spacing": spacing, "anisotropy_threshold": float(self.anisotropy_threshold)}
        mends = self.mends.to_dict() if self.mends else {}
        left_out = {"on"} if not mends else set()
        left_out |= {"frames"} if self.frames == "channels" else set()
        return {key: value for key, value in {**whole, "on": mends}.items() if key not in left_out}

    def prepare(self, case: Case, labels: Sequence[Label] = ()) -> PreparedArrays:
        """Read and prepare a case; whatever is wrong with it is a CaseError.

        labels: where given, any other value in the label map is an error.
        """
        try:
            volumes = {name: read_ref(ref, self.mends) for name, ref in case.images.items()}
            check_images(case, volumes)
            checked = self._label(case, volumes, labels)
        except CaseError:
            raise
        except MedlightError as error:
            raise CaseError(case.id, str(error)) from None
        return self.prepare_volumes(volumes, checked)

    def _label(self, case: Case, images: dict[str, Volume], labels: Sequence[Label]) -> npt.NDArray[Any] | None:
        try:
            frames = self.clip_frames(images)
        except MedlightError as error:
            raise CaseError(case.id, f"{named(next(iter(case.images.values())))}: {error}") from None
        if case.label is None:
            return None
        image = next(iter(images.values()))
        return checked_label(case, read_label_ref(case.label, image, labels), image, labels, frames)

    def prepare_volumes(
        self, images: dict[str, Volume], label: npt.NDArray[Any] | None = None, described: bool = True
    ) -> PreparedArrays:
        """Prepare volumes in memory (used for prediction too); all are brought onto the first one's grid.

        label: a label map ``(I, J, K)`` of unsigned integers on the grid of the first image; of a clip, ``(frames, I,
        J, 1)``. described: find the statistics, which normalisers that go voxel by voxel need none of. Raises
        MedlightError where a clip can't be made of them.
        """
        first = next(iter(images.values()))
        frames = self.clip_frames(images)
        affine, shape = self.grid(first)
        image = self._image(images, affine, shape, frames)
        moved = None
        if label is not None:
            moved = to_grid(label, first.affine, affine, shape, "label", self.anisotropy_threshold)
            moved = along_k(moved) if frames else moved
        index, counts = ({}, {}) if moved is None else foreground(moved)
        return PreparedArrays(
            image=image,
            label=moved,
            affine=affine,
            channels=_channel_names(images, frames),
            stats=[statistics(channel) if described else {} for channel in image],
            original_affine=first.affine,
            original_shape=first.shape,
            foreground=index,
            counts=counts,
            values=() if label is None else tuple(values_of(label).tolist()),
            frames=frames,
            mended=_mended(images),
            modalities=modalities(images.values()),
            spacings={name: self.spacing_along(images[name].affine) for name in list(images)[1:]},
        )

    def _image(self, images: dict[str, Volume], affine: Affine, shape: Shape, frames: int) -> npt.NDArray[np.float32]:
        """All channels of all images on one grid; the frames of a clip along K."""
        counts = [len(volume.array) // (frames or 1) for volume in images.values()]
        image = np.empty((sum(counts), *shape[:2], frames or shape[2]), np.float32)
        start = 0
        for volume, count in zip(images.values(), counts, strict=True):
            part = image[start : start + count]
            start += count
            out = np.empty((frames, count, *shape), np.float32) if frames else part
            moved = out.reshape(-1, *shape)
            to_grid(volume.array, volume.affine, affine, shape, "image", self.anisotropy_threshold, out=moved)
            if frames:
                part[...] = np.moveaxis(out[..., 0], 0, -1)
        return image

    def spacing_along(self, affine: Affine) -> list[float]:
        """Voxel size of a scan along the axes of ``orientation``, in millimetres."""
        turned = reorient(np.broadcast_to(np.uint8(0), (1, 1, 1)), affine, self.orientation)[1]
        return [float(size) for size in np.linalg.norm(turned[:3, :3], axis=0)]

    def clip_frames(self, images: dict[str, Volume]) -> int:
        """How many frames a clip of these images has; 0 where it is to be none, or they are no 4D scans."""
        counts = {name: len(volume.array) // colours(volume) for name, volume in images.items()}
        if self.frames == "channels" or set(counts.values()) == {1}:
            return 0
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise MedlightError(f"frames: clip needs as many frames of every image, and there are {listed}")
        slices = next(iter(images.values())).shape[2]
        if slices > 1:
            raise MedlightError(f"frames: clip takes single slices, and each frame has {slices}; set frames: channels")
        return next(iter(counts.values()))

    def grid(self, first: Volume) -> tuple[Affine, Shape]:
        """The prepared grid of a case, by its first image.

        A 2D image whose slice axis would not stay last keeps its own orientation.
        """
        turned, affine = reorient(first.array, first.affine, self.orientation)
        if first.shape[2] == 1 and turned.shape[-1] != 1:
            turned, affine = first.array, first.affine
        shape: Shape = turned.shape[-3:]
        return (affine, shape) if self.spacing is None else spaced_grid(affine, shape, self.spacing)


def modalities(images: Iterable[Volume]) -> tuple[str, ...]:
    """The modalities that images tell; none for formats that have no word for it."""
    return tuple(sorted({str(volume.meta["modality"]) for volume in images if volume.meta.get("modality")}))


def along_k(frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Lay frames ``(..., T, I, J, 1)`` along the last axis: ``(..., I, J, T)``."""
    return np.ascontiguousarray(np.moveaxis(frames[..., 0], -3, -1))


def _channel_names(images: dict[str, Volume], frames: int) -> tuple[str, ...]:
    names: list[str] = []
    for name, volume in images.items():
        count = len(volume.array) // (frames or 1)
        known = [channel.name for channel in volume.channels] or [""] * count
        names += [name] if count == 1 else [f"{name}:{known[n] or n}" for n in range(count)]
    return tuple(names)


def _mended(images: dict[str, Volume]) -> tuple[str, ...]:
    notes = [(name, note) for name, volume in images.items() for note in volume.meta.get("mended", ())]
    return tuple(note if len(images) == 1 else f"{name}: {note}" for name, note in notes)
