"""Samples: dicts of plain tensors, each a pure function of what is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchio as tio
from torch.utils.data import Dataset

from medlight.data.loader import Sample
from medlight.data.patches import Patch, Triple, Window, cut, place
from medlight.data.pipeline import Pipeline
from medlight.data.sampler import InTurn, Order
from medlight.errors import MedlightError, UsageError
from medlight.prepare import Normaliser, PreparedCase

Normalisers = Normaliser | Sequence[Normaliser]


class SampleError(MedlightError):
    """A sample could not be made; one line that names the case.

    A DataLoader raises a worker's exception again with the whole traceback as its text: that is kept as a note, and
    the message is the worker's own.
    """

    def __init__(self, message: str) -> None:
        last = message.strip().splitlines()[-1]
        super().__init__(last.rpartition(f"{type(self).__name__}: ")[2])
        if last != message:
            self.add_note(message)


@dataclass(frozen=True)
class Schema:
    """What all samples of a data set have alike.

    spatial_dims: 2 or 3. values: label values other than background; empty where there are no label maps.
    targets: 0 where there are no targets, 1 for a class index, else the number of values (``multi`` is then true).
    """

    spatial_dims: int
    values: tuple[int, ...] = ()
    targets: int = 0
    multi: bool = False

    @property
    def label_type(self) -> torch.dtype:
        """The smallest type that holds all label values."""
        return torch.uint8 if max(self.values, default=0) < 256 else torch.int32


class Reader:
    """Reads parts of prepared cases, normalised, and makes samples of them.

    normalise: one normaliser for all channels, or a list of one per channel. names: what an error calls the cases, by
    their ids, which may be patients' names.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        index: Sequence[int],
        normalise: Normalisers,
        schema: Schema,
        names: Mapping[str, str],
    ) -> None:
        self.cases = list(cases)
        self.index = list(index)
        self.names = [names.get(case.case.id, case.case.id) for case in cases]
        self.schema = schema
        self.scalings = [
            [n.scaling(s) for n, s in zip(for_channels(normalise, len(c.stats)), c.stats, strict=True)] for c in cases
        ]

    def image(self, number: int, window: Window) -> torch.Tensor:
        """Return a part of a case's image, float32 ``(C, I, J, K)``, normalised. The window lies inside the image."""
        slab = self.cases[number].image_slab(window.slices)
        channels = [s.apply(c) for s, c in zip(self.scalings[number], slab, strict=True)]
        return torch.from_numpy(channels[0][None] if len(channels) == 1 else np.stack(channels))

    def label(self, number: int, window: Window) -> torch.Tensor | None:
        """Return a part of a case's label map, uint8 or int32 ``(1, I, J, K)``; None where it has none."""
        if not self.schema.values or not self.cases[number].has_label:
            return None
        slab = self.cases[number].label_slab(window.slices)
        return torch.from_numpy(np.array(slab, dtype=np.uint8 if slab.dtype == np.uint8 else np.int32)[None])

    def sample(self, number: int, image: torch.Tensor, label: torch.Tensor | None) -> Sample:
        """Put a sample together: see `medlight.data.ScanDataModule` for its keys, and `medlight.data.loader`."""
        prepared = self.cases[number]
        target, has_target = self._target(prepared.case.target)
        sample: Sample = {
            "image": image.float().contiguous(),
            "case_id": np.int64(self.index[number]),
            "spacing": np.array(prepared.spacing, np.float32),
            "is_labelled": np.bool_((label is not None or not self.schema.values) and has_target),
        }
        if self.schema.values:
            kind = self.schema.label_type
            empty = torch.zeros((1, *image.shape[1:]), dtype=kind) if label is None else label
            sample["label"] = empty.to(kind).contiguous()
        if target is not None:
            sample["target"] = target
        if self.schema.spatial_dims == 2:
            sample |= {key: sample[key][..., 0] for key in ("image", "label") if key in sample}
        return sample

    def _target(self, target: int | tuple[float, ...] | None) -> tuple[Any, bool]:
        """The target (None where the set has none) and whether it is known; -1 or NaN where it is not."""
        if not self.schema.targets:
            return None, True
        if not self.schema.multi:
            return np.int64(target if isinstance(target, int) else -1), target is not None
        values = (np.nan,) * self.schema.targets if target is None else target
        return np.array(values, np.float32), target is not None

    def name(self, number: int) -> str:
        """What an error calls a case: it may end in a run."""
        return self.names[number]


def for_channels(normalise: Normalisers, channels: int) -> list[Normaliser]:
    """Return a normaliser for each channel; UsageError where a list is of another length."""
    every = list(normalise) if isinstance(normalise, Sequence) else [normalise] * channels
    if len(every) != channels:
        raise UsageError(f"data.normalise: lists {len(every)} normalisers, but the images have {channels} channels")
    return every


class PatchDataset(Dataset[Sample]):
    """Training samples by draw number: the same number always gives the same sample.

    order: says which case a draw takes; all of them in turn where it is None.
    """

    def __init__(
        self, reader: Reader, patch: Patch, augment: Sequence[tio.Transform], seed: int, order: Order | None = None
    ) -> None:
        self.reader = reader
        self.patch = patch
        self.pipeline = Pipeline(augment)
        self.seed = seed
        self.order = order or InTurn(seed, range(len(reader.cases)))

    def __getitem__(self, draw: int) -> Sample:
        number = self.order(draw)
        try:
            return self._sample(number, draw)
        except Exception as error:
            raise failed(self.reader.name(number), error) from error

    def _sample(self, number: int, draw: int) -> Sample:
        rng = np.random.default_rng([self.seed, draw])
        window = self._window(number, rng)
        return self._finished(number, self._augmented(number, window, int(rng.integers(2**63))))

    def _window(self, number: int, rng: np.random.Generator) -> Window:
        """Where in its case the patch lies."""
        prepared = self.reader.cases[number]
        return place(self.patch.shape, spatial(prepared), rng, self._centre(prepared, rng))

    def _augmented(self, number: int, window: Window, seed: int) -> tio.Subject:
        """A part of a case after ``augment``."""
        prepared = self.reader.cases[number]
        with self.pipeline.seeded(seed):
            plan = self.pipeline.plan(window, prepared.affine)
            slab = plan.needed.inside(spatial(prepared))
            subject = self._subject(number, slab, prepared.affine)
            return self.pipeline.run(subject, slab, plan)

    def _finished(self, number: int, subject: tio.Subject) -> Sample:
        images = subject.get_images_dict(intensity_only=False)
        label = images["label"].data if "label" in images else None
        return self.reader.sample(number, images["image"].data, label)

    def _subject(self, number: int, slab: Window, affine: npt.NDArray[np.float64]) -> tio.Subject:
        """Read a part of a case as TorchIO's transforms want it."""
        moved = corner(affine, slab)
        images: dict[str, tio.Image] = {"image": tio.ScalarImage(tensor=self.reader.image(number, slab), affine=moved)}
        label = self.reader.label(number, slab)
        if label is not None:
            images["label"] = tio.LabelMap(tensor=label, affine=moved)
        return tio.Subject(images)

    def _centre(self, prepared: PreparedCase, rng: np.random.Generator) -> npt.NDArray[np.integer[Any]] | None:
        """A random voxel of a random class that the case has, or None for a patch anywhere."""
        present = [value for value in self.reader.schema.values if prepared.counts.get(value)]
        if rng.random() >= self.patch.foreground or not present:
            return None
        voxels = prepared.foreground(present[int(rng.integers(len(present)))])
        return voxels[int(rng.integers(len(voxels)))]


class WholeDataset(Dataset[Sample]):
    """Whole prepared cases by index, normalised; brought to ``size`` (voxels along I, J, K) where one is given."""

    def __init__(self, reader: Reader, size: Triple | None = None) -> None:
        self.reader = reader
        self.size = size

    def __len__(self) -> int:
        return len(self.reader.cases)

    def __getitem__(self, number: int) -> Sample:
        try:
            shape = spatial(self.reader.cases[number])
            whole = Window((0, 0, 0), shape)
            image, label = self.reader.image(number, whole), self.reader.label(number, whole)
            if self.size is not None:
                low = [-((s - n) // 2) for s, n in zip(self.size, shape, strict=True)]
                window = Window((low[0], low[1], low[2]), self.size)
                image, label = cut(image, window), None if label is None else cut(label, window)
            return self.reader.sample(number, image, label)
        except Exception as error:
            raise failed(self.reader.name(number), error) from error


class FixedDataset(Dataset[Sample]):
    """A few patches of each case, always the same ones: drawn from the seed, the case's content and their number."""

    def __init__(self, reader: Reader, patch: Patch, count: int, seed: int) -> None:
        self.reader = reader
        self.patch = patch
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return len(self.reader.cases) * self.count

    def __getitem__(self, index: int) -> Sample:
        number, which = divmod(index, self.count)
        try:
            prepared = self.reader.cases[number]
            shape = spatial(prepared)
            rng = np.random.default_rng([self.seed, int(prepared.digest[:16], 16), which])
            window = place(self.patch.shape, shape, rng, None)
            slab = window.inside(shape)
            image, label = self.reader.image(number, slab), self.reader.label(number, slab)
            inner = window.seen_from(slab)
            return self.reader.sample(number, cut(image, inner), None if label is None else cut(label, inner))
        except Exception as error:
            raise failed(self.reader.name(number), error) from error


def failed(case_id: str, error: Exception) -> SampleError:
    """Return the error that names the case, what went wrong, and what that came from."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    texts = [
        ("" if isinstance(e, MedlightError) else f"{type(e).__name__}: ") + " ".join(str(e).split()) for e in chain
    ]
    return SampleError(f"case {case_id}: {', from '.join(texts)}")


def corner(affine: npt.NDArray[np.float64], window: Window) -> npt.NDArray[np.float64]:
    """The affine of a window of an image that has this one."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ window.low
    return moved


def spatial(prepared: PreparedCase) -> Triple:
    """Voxels of a prepared case along I, J, K."""
    i, j, k = prepared.shape[-3:]
    return i, j, k
