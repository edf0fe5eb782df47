"""ScanDataModule: from a list of cases to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import torchio as tio
from torch.utils.data import Dataset

from medlight.config import nearest
from medlight.data.dataset import PatchDataset, Reader, Schema, WholeDataset, for_channels, spatial
from medlight.data.loader import PREFETCH, Batch, Sample, SampleLoader, collate, with_wide_labels
from medlight.data.patches import Patch, Triple
from medlight.data.sampler import DrawSampler, ShareSampler
from medlight.data.slots import Slots, can_share
from medlight.errors import UsageError
from medlight.prepare import (
    BadCase,
    CaseSource,
    Label,
    Normaliser,
    Preparation,
    PreparedCase,
    PreparedSet,
    Split,
    Splitter,
    Store,
    ZScore,
)
from medlight.prepare.prepared import scanned
from medlight.scans.dicom.unreadable import MODALITIES

DataSignature = dict[str, Any]


class ScanDataModule(L.LightningDataModule):
    """Batches of patches for training, whole cases for validation and test.

    A batch is a dict of plain tensors; in 2D the axis K is left out:

    - ``image`` float32 ``(B, C, I, J, K)``, normalised
    - ``label`` int64 ``(B, 1, I, J, K)``, where the data have label maps; zeros for an unlabelled case
    - ``target`` int64 ``(B,)`` or float32 ``(B, L)``, where the data have targets; -1 or NaN for an unlabelled case
    - ``is_labelled`` bool ``(B,)``
    - ``case_id`` int64 ``(B,)``, index into ``case_ids``
    - ``spacing`` float32 ``(B, 3)``, voxel size in mm

    Each training sample is a function of the seed and of its draw number alone (see `medlight.data.sampler`), so the
    stream of samples is the same for any number of workers, for any number of ranks at the same effective batch, and
    after a resume. Ranks share each training batch; each validation or test case is seen by one rank.

    Args:
        source: lists the cases.
        split: says which of them train, validate and test.
        preparation: orientation and spacing; done once, kept in the store.
        normalise: one normaliser for all channels, or one for each.
        patch: size of the training patches; None trains on whole images, all brought to the size of the largest.
        augment: TorchIO transforms, applied to the normalised patch in this order.
        batch_size: training samples in a rank's batch.
        steps_per_epoch: training batches in an epoch; None for as many as show about every case once.
        workers: processes that load data; 0 loads in the main one.
        on_bad_case: ``error`` refuses to start with cases that can't be used; ``skip`` leaves them out and lists them
            in ``bad``.
        modality: what the images are, as DICOM calls it (``CT``, ``MR``, ``US`` ...), where their files do not tell, as
            NIfTI's and pictures don't: a bundle refuses scans of another one.
        seed: of everything that is drawn.
        store_dir: folder of the prepared store.
    """

    def __init__(
        self,
        source: CaseSource,
        split: Splitter,
        preparation: Preparation = Preparation(),  # noqa: B008 (frozen)
        normalise: Normaliser | list[Normaliser] = ZScore(),  # noqa: B008 (frozen)
        patch: Patch | None = None,
        augment: list[tio.Transform] | None = None,
        batch_size: int = 2,
        steps_per_epoch: int | None = None,
        workers: int = 0,
        on_bad_case: Literal["error", "skip"] = "error",
        modality: str | None = None,
        seed: int = 0,
        store_dir: str = "mlruns/store",
    ) -> None:
        super().__init__()
        at_least("batch_size", batch_size, 1)
        at_least("workers", workers, 0)
        at_least("seed", seed, 0)
        if steps_per_epoch is not None:
            at_least("steps_per_epoch", steps_per_epoch, 1)
        self.source, self.splitter, self.preparation, self.normalise = source, split, preparation, normalise
        self.patch, self.augment = patch, list(augment or [])
        self.batch_size, self.steps_per_epoch, self.workers = batch_size, steps_per_epoch, workers
        if modality is not None and modality not in MODALITIES:
            near = nearest(modality.upper(), MODALITIES) or "; write CT, MR, PT, US, DX, MG ..."
            raise UsageError(f"data.modality: {modality!r} is no modality of DICOM{near}")
        self.on_bad_case, self.modality, self.seed, self.store_dir = on_bad_case, modality, seed, store_dir
        self.split = Split()
        self.prepared: dict[str, list[PreparedCase]] = {}
        self.bad: list[BadCase] = []
        self.computed = self.reused = 0  # cases prepared now, and found in the store
        self.labels: tuple[Label, ...] = ()
        self.classes: tuple[str, ...] = ()
        self.multilabel = False
        self.case_ids: list[str] = []
        self.digests: dict[str, str] = {}
        self.recorded: dict[str, str] = {}
        self.mended: dict[str, list[str]] = {}
        self.spatial_dims = 3

    def prepare_data(self) -> None:
        """Fill the store. Raises CaseError for a case that can't be used, unless they are to be skipped."""
        if not self.prepared:
            self._prepare(workers=self.workers)

    def setup(self, stage: str | None = None) -> None:
        """Split the prepared cases; the second time there is nothing left to do."""
        if not self.prepared:
            self._prepare(workers=0)

    def _prepare(self, workers: int) -> None:
        listed = self.source.cases()
        done = Store(Path(self.store_dir)).prepare(
            listed, self.preparation, on_bad_case=self.on_bad_case, workers=workers, progress=True
        )
        if not done.cases:
            raise UsageError("data.source: found no case that can be used")
        self.classes, self.multilabel = listed.classes, listed.multilabel
        self._take(done)

    def _take(self, done: PreparedSet) -> None:
        """Split what the store gave and note what is known of it."""
        by_id = {prepared.case.id: prepared for prepared in done.cases}
        self.bad, self.labels = done.bad, done.labels
        self.computed, self.reused = done.computed, done.reused
        self.split = self.splitter.assign([c.case for c in done.cases], [bad.id for bad in done.bad])
        parts = self.split.to_dict()
        self.prepared = {name: [by_id[case_id] for case_id in ids] for name, ids in parts.items()}
        self.case_ids = [case_id for ids in parts.values() for case_id in ids]
        self.digests = {case_id: by_id[case_id].digest for case_id in self.case_ids}
        self.recorded = _recorded([by_id[case_id] for case_id in self.case_ids])
        self.mended = {self.recorded[name]: list(by_id[name].mended) for name in self.case_ids if by_id[name].mended}
        used = [by_id[case_id] for case_id in self.case_ids]
        self.spatial_dims = 2 if all(spatial(prepared)[2] == 1 for prepared in used) else 3
        self._check(used)

    def _check(self, used: Sequence[PreparedCase]) -> None:
        if not self.prepared["train"]:
            raise UsageError("data.split: leaves no case for training")
        first = used[0]
        for other in used:
            if other.channels != first.channels:
                raise UsageError(
                    f"data.source: case {other.case.id} has the images {', '.join(other.channels)}, but "
                    f"{first.case.id} has {', '.join(first.channels)}; all cases need the same"
                )
            if self.modality and {self.modality} != set(other.modalities or [self.modality]):
                told = ", ".join(other.modalities)
                raise UsageError(
                    f"data.modality: {self.modality}, but the files of case {other.case.id} say {told}; mend: leave "
                    "data.modality out, or the case"
                )
        for_channels(self.normalise, len(first.channels))
        if self.patch is not None and len(self.patch.size) != self.spatial_dims:
            size, dims = self.patch.size, self.spatial_dims
            raise UsageError(f"data.patch.size: {size}, but the images are {dims}D; write {dims} numbers")

    @property
    def patch_shape(self) -> Triple:
        """Size of the training samples along I, J, K: the patch, or the largest image along each axis."""
        if self.patch is not None:
            return self.patch.shape
        shapes = [spatial(prepared) for cases in self.prepared.values() for prepared in cases]
        i, j, k = (max(shape[axis] for shape in shapes) for axis in range(3))
        return i, j, k

    @property
    def _schema(self) -> Schema:
        targets = [c.case.target for cases in self.prepared.values() for c in cases if c.case.target is not None]
        several = [len(target) for target in targets if isinstance(target, tuple)]
        count = several[0] if several else int(bool(targets))
        values = tuple(label.value for label in self.labels if label.value)
        has_labels = any(c.has_label for cases in self.prepared.values() for c in cases)
        return Schema(self.spatial_dims, values if has_labels else (), count, bool(several))

    def signature(self) -> DataSignature:
        """What a model has to know of the data, as plain values; after `setup`."""
        channels = list(self.prepared["train"][0].channels)
        return {
            "spatial_dims": self.spatial_dims,
            "channels": channels,
            "labels": [{**asdict(label), "code": _listed(label.code)} for label in self.labels],
            "classes": list(self.classes),
            "multilabel": self.multilabel,
            "preparation": self.preparation.to_dict(),
            "normalise": [n.to_dict() for n in for_channels(self.normalise, len(channels))],
            "patch_size": list(self.patch_shape[: self.spatial_dims]),
            **scanned(self.prepared["train"], self.preparation),
            **({"modalities": [self.modality]} if self.modality else {}),
        }

    def _reader(self, part: str) -> Reader:
        place = {case_id: index for index, case_id in enumerate(self.case_ids)}
        cases = self.prepared[part]
        return Reader(cases, [place[c.case.id] for c in cases], self.normalise, self._schema, self.recorded)

    def batches(self, ranks: int = 1) -> int:
        """Return how many training batches an epoch has for each of so many ranks."""
        return self.steps_per_epoch or max(1, round(len(self.prepared["train"]) / (self.batch_size * ranks)))

    def train_dataloader(self) -> SampleLoader:
        """Training batches of this rank."""
        rank, world = self._share()
        sampler = self._sampler(rank, world)
        sampler.set_epoch(0 if self.trainer is None else self.trainer.current_epoch)
        slots = Slots(self.workers, self._sizes()) if self.workers and can_share() else None
        return self._loader(self._patches(world), sampler, self.batch_size, slots)

    def _sampler(self, rank: int, world: int) -> DrawSampler:
        return DrawSampler(self.batches(world), self.batch_size, rank, world)

    def _patches(self, world: int) -> PatchDataset:
        """The training samples by draw."""
        return PatchDataset(self._reader("train"), self._patch, self.augment, self.seed)

    @property
    def _patch(self) -> Patch:
        return self.patch or Patch(list(self.patch_shape), foreground=0)

    def _sizes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and types of the large tensors of a training batch, which are all of one size."""
        schema, shape = self._schema, self.patch_shape[: self.spatial_dims]
        channels = len(self.prepared["train"][0].channels)
        like: dict[str, tuple[tuple[int, ...], torch.dtype]]
        like = {"image": ((self.batch_size, channels, *shape), torch.float32)}
        if schema.values:
            like["label"] = ((self.batch_size, 1, *shape), schema.label_type)
        return like

    def val_dataloader(self) -> SampleLoader:
        """Whole validation cases, this rank's share of them."""
        return self._whole("val")

    def test_dataloader(self) -> SampleLoader:
        """Whole test cases, this rank's share of them."""
        return self._whole("test")

    def _whole(self, part: str) -> SampleLoader:
        rank, world = self._share()
        together = self.patch is None and not self._schema.values  # images of one size can be batched
        dataset = WholeDataset(self._reader(part), self.patch_shape if together else None)
        return self._loader(dataset, ShareSampler(dataset, rank, world), self.batch_size if together else 1)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Widen label maps that came to the device in a smaller type."""
        return with_wide_labels(batch)

    def _share(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(
        self, dataset: Dataset[Sample], sampler: DrawSampler | ShareSampler, size: int, slots: Slots | None = None
    ) -> SampleLoader:
        loader = SampleLoader(
            dataset,
            batch_size=size,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=slots.collate if slots else collate,
            prefetch_factor=PREFETCH if self.workers else None,
            worker_init_fn=start_worker if self.workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its seed of workers, unused here, would be drawn from the global stream
        )
        loader.fetch = slots.fetch if slots else None
        return loader


def _recorded(prepared: Sequence[PreparedCase]) -> dict[str, str]:
    """What a run may call each case: never by a file's name, which may be a patient's."""
    names: dict[str, str] = {}
    for case in prepared:
        name = f"case-{case.digest[:10]}" if case.case.private else case.case.id
        copies = sum(other.split("+")[0] == name for other in names.values()) if case.case.private else 0
        names[case.case.id] = f"{name}+{copies}" if copies else name
    return names


def start_worker(worker: int) -> None:
    """Keep a worker process to one thread: there are several of them, beside the one that trains."""
    torch.set_num_threads(1)


def at_least(name: str, value: int, least: int) -> None:
    """Raise UsageError where a number is too small."""
    if value < least:
        raise UsageError(f"data.{name}: {value} is too small; write a whole number of at least {least}")


def _listed(code: tuple[str, str, str] | None) -> list[str] | None:
    return None if code is None else list(code)
