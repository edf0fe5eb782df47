"""Several views of each training patch, and patches to learn from without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchio as tio

from medlight.data.datamodule import ScanDataModule, at_least
from medlight.data.dataset import FixedDataset, PatchDataset, Reader, WholeDataset, corner, failed, spatial
from medlight.data.loader import Sample, SampleLoader
from medlight.data.patches import Patch, Window, cut
from medlight.data.pipeline import Pipeline, Plan, cut_all, walk
from medlight.data.reach import moves
from medlight.data.sampler import Order, ShareSampler

Transforms = Sequence[tio.Transform]


class ViewsDataModule(ScanDataModule):
    """A ScanDataModule whose training batches also have several views of each sample.

    - ``views`` float32 ``(B, V, C, I, J, K)`` (in 2D without K): the sample's ``image``, once through each list of
      transforms. Absent where no views are asked for.

    A view starts from what ``augment`` made, so all views of a sample share one movement. Labels belong to ``image``,
    and to the views too unless `views_move`. What is drawn for a view is a function of the seed, the draw and the
    view's number alone. Transforms that look beyond the patch get what lies there; those that change its size are
    refused. Validation and test have no views.

    Args:
        views: for each view its TorchIO transforms; an empty list leaves the image as it is.
        scan: arguments of `ScanDataModule`.
    """

    def __init__(self, views: list[list[tio.Transform]] | None = None, **scan: Any) -> None:
        super().__init__(**scan)
        self.views = [list(view) for view in views or []]

    @property
    def views_move(self) -> bool:
        """Whether a view has transforms that move voxels, so that labels don't belong to it."""
        return any(moves(inner) for view in self.views for transform in view for inner in walk(transform))

    def _patches(self, world: int) -> PatchDataset:
        return ViewsDataset(self._reader("train"), self._patch, self.augment, self.seed, self.views)

    def _sizes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        sizes = super()._sizes()
        (batch, *one), dtype = sizes["image"]
        return {**sizes, "views": ((batch, len(self.views), *one), dtype)} if self.views else sizes


class PretrainingDataModule(ViewsDataModule):
    """Views to learn from without labels.

    No label has a say in what is trained on: patches lie anywhere in the image, whatever ``patch.foreground`` is.
    Labels and targets stay in the batches where there are any, for probes.

    Validation, test and `train_bank_dataloader` give batches of ``batch_size`` samples without augmentation, the same
    ones every time: ``val_patches`` patches of each case where ``patch`` is set, else whole images, all brought to the
    size of the largest. At validation and test they have views too, the same ones every time, for the loss.

    Args:
        val_patches: patches of each case.
        scan: arguments of `ViewsDataModule` and `ScanDataModule`.
    """

    def __init__(self, val_patches: int = 4, **scan: Any) -> None:
        super().__init__(**scan)
        at_least("val_patches", val_patches, 1)
        self.val_patches = val_patches
        if self.patch is not None:
            self.patch = replace(self.patch, foreground=0.0)

    def train_bank_dataloader(self) -> SampleLoader:
        """What a nearest-neighbour classifier compares with: the training cases as validation sees its own."""
        return self._whole("train")

    def _whole(self, part: str) -> SampleLoader:
        rank, world = self._share()
        reader = self._reader(part)
        dataset: FixedDataset | FixedViews | WholeDataset
        if self.views and part != "train":
            count = 1 if self.patch is None else self.val_patches
            dataset = FixedViews(reader, self._patch, count, self.seed, self.views)
        elif self.patch is None:
            dataset = WholeDataset(reader, self.patch_shape)
        else:
            dataset = FixedDataset(reader, self.patch, self.val_patches, self.seed)
        return self._loader(dataset, ShareSampler(dataset, rank, world), self.batch_size)


class ViewsDataset(PatchDataset):
    """Training samples by draw number, with views."""

    def __init__(
        self,
        reader: Reader,
        patch: Patch,
        augment: Transforms,
        seed: int,
        views: Sequence[Transforms],
        order: Order | None = None,
    ) -> None:
        super().__init__(reader, patch, augment, seed, order)
        self.views = [Pipeline(view, f"data.views[{number}]") for number, view in enumerate(views)]
        self.still = not any(moves(inner) for transform in augment for inner in walk(transform))

    def _sample(self, number: int, draw: int) -> Sample:
        if not self.views:
            return super()._sample(number, draw)
        rng = np.random.default_rng([self.seed, draw])
        window = self._window(number, rng)
        affine = self.reader.cases[number].affine
        drawn = [self._drawn(view, draw, window, affine) for view in range(len(self.views))]
        wide = _around(window, [plan for plan, _ in drawn])
        subject = self._augmented(number, wide, int(rng.integers(2**63)))
        image = _data(subject)
        views = [self._view(view, number, image, wide, *drawn[view]) for view in range(len(self.views))]
        cut_all(subject, window.seen_from(wide))
        stacked = torch.stack(views)
        flat = self.reader.schema.spatial_dims == 2
        return {**self._finished(number, subject), "views": stacked[..., 0] if flat else stacked}

    def _drawn(self, view: int, draw: int, window: Window, affine: npt.NDArray[np.float64]) -> tuple[Plan, int]:
        """What a view needs of the case, and the seed of what is drawn for it later."""
        first, second = np.random.default_rng([self.seed, draw, view + 1]).integers(2**63, size=2).tolist()
        with self.views[view].seeded(first):
            return self.views[view].plan(window, affine), second

    def _view(self, view: int, number: int, image: torch.Tensor, wide: Window, plan: Plan, seed: int) -> torch.Tensor:
        """One view, from the part of the image that it needs.

        What lies outside of the case is left to the view's transforms, unless ``augment`` moved the case's border.
        """
        prepared = self.reader.cases[number]
        slab = plan.needed.inside(spatial(prepared)) if self.still else plan.needed
        own = cut(image, slab.seen_from(wide)).clone()  # transforms may write into what they get
        subject = tio.Subject(image=tio.ScalarImage(tensor=own, affine=corner(prepared.affine, slab)))
        with self.views[view].seeded(seed):
            return _data(self.views[view].run(subject, slab, plan)).float()


class FixedViews(ViewsDataset):
    """A few patches of each case by index, as they are and as views, always the same ones."""

    def __init__(self, reader: Reader, patch: Patch, count: int, seed: int, views: Sequence[Transforms]) -> None:
        super().__init__(reader, patch, [], seed, views)
        self.count = count

    def __len__(self) -> int:
        return len(self.reader.cases) * self.count

    def __getitem__(self, index: int) -> Sample:
        number, which = divmod(index, self.count)
        content = int(self.reader.cases[number].digest[:16], 16)
        try:
            return self._sample(number, content * self.count + which)
        except Exception as error:
            raise failed(self.reader.name(number), error) from error


def _data(subject: tio.Subject) -> torch.Tensor:
    return subject.get_images_dict()["image"].data


def _around(window: Window, plans: Sequence[Plan]) -> Window:
    """A window with the same middle that holds what all views need."""
    i, j, k = (max(window.low[axis] - plan.needed.low[axis] for plan in plans) for axis in range(3))
    return window.wider((i, j, k))
