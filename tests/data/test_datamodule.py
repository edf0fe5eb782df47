"""ScanDataModule: what batches hold, and that each sample is a function of seed and draw alone."""

import io
import json
import random
import re

import lightning as L
import numpy as np
import pytest
import torch
import torchio as tio
from lightning.pytorch.cli import LightningCLI
from monai import transforms as mt

from medlight.data import Patch, ScanDataModule, datamodule
from medlight.data.augment import RandomBiasField, RandomSpatial
from medlight.data.dataset import SampleError
from medlight.errors import CaseError, UsageError
from medlight.prepare import (
    Decathlon,
    GivenSplit,
    ImageFolders,
    Manifest,
    MedMNIST,
    Preparation,
    RandomSplit,
    Window,
    ZScore,
)
from tests.data import fake


@pytest.fixture
def heads(tmp_path):
    return fake.folders(tmp_path / "scans", cases=6, shape=(20, 22, 18))


def module(root, tmp_path, **changed):
    arguments = {
        "source": ImageFolders(str(root / "images"), str(root / "labels")),
        "split": RandomSplit(0.34),
        "patch": Patch([12, 16, 10]),
        "batch_size": 4,
        "store_dir": str(tmp_path / "store"),
        **changed,
    }
    data = ScanDataModule(**arguments)
    data.prepare_data()
    data.setup("fit")
    return data


def augmentations():
    return [
        RandomSpatial(0.2, 20, max_displacement=2, num_control_points=5, axes=(0,), p=0.8),
        RandomBiasField(0.4, p=0.5),
        tio.RandomNoise(p=0.5),
    ]


def stream(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def equal(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(one, other, strict=True)
    )


def test_a_training_batch(heads, tmp_path):
    data = module(heads, tmp_path, augment=augmentations(), steps_per_epoch=2)
    (batch, _) = stream(data)
    assert {key: (tuple(v.shape), v.dtype) for key, v in batch.items()} == {
        "image": ((4, 1, 12, 16, 10), torch.float32),
        "label": ((4, 1, 12, 16, 10), torch.int64),
        "case_id": ((4,), torch.int64),
        "spacing": ((4, 3), torch.float32),
        "is_labelled": ((4,), torch.bool),
    }
    assert all(type(value) is torch.Tensor for value in batch.values())
    assert set(batch["label"].unique().tolist()) <= {0, 1, 2}
    assert batch["is_labelled"].all()
    trained = {data.case_ids[index] for index in batch["case_id"].tolist()}
    assert trained <= set(data.split.train)


def test_without_augmentation_a_patch_is_a_part_of_its_case(heads, tmp_path):
    data = module(heads, tmp_path, normalise=Window(0, 500))
    cases = {c.case.id: c for part in data.prepared.values() for c in part}
    for batch in stream(data):
        for image, label, index in zip(batch["image"], batch["label"], batch["case_id"], strict=True):
            case = cases[data.case_ids[int(index)]]
            whole = Window(0, 500).scaling().apply(case.image())
            found = [
                (i, j, k)
                for i in range(case.shape[0] - 11)
                for j in range(case.shape[1] - 15)
                for k in range(case.shape[2] - 9)
                if whole[0, i, j, k] == image[0, 0, 0, 0]
                and np.array_equal(whole[:, i : i + 12, j : j + 16, k : k + 10], image.numpy())
            ]
            assert len(found) == 1
            i, j, k = found[0]
            assert np.array_equal(case.label()[i : i + 12, j : j + 16, k : k + 10], label[0].numpy())


def test_foreground_patches_have_each_class_in_their_middle(heads, tmp_path):
    data = module(heads, tmp_path, patch=Patch([5, 5, 5], foreground=1.0), steps_per_epoch=30)
    middles = torch.cat([batch["label"][:, 0, 2, 2, 2] for batch in stream(data)])
    assert (middles > 0).float().mean() > 0.95  # near the border the patch is moved into the image
    assert 0.35 < (middles == 1).float().mean() < 0.65
    anywhere = module(heads, tmp_path, patch=Patch([5, 5, 5], foreground=0.0), steps_per_epoch=30)
    assert torch.cat([b["label"][:, 0, 2, 2, 2] for b in stream(anywhere)]).gt(0).float().mean() < 0.5


@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_gives_the_same_stream(heads, tmp_path, workers):
    alone = module(heads, tmp_path, augment=augmentations(), steps_per_epoch=20)
    with_workers = module(heads, tmp_path, augment=augmentations(), steps_per_epoch=20, workers=workers)
    assert equal(stream(alone), stream(with_workers))
    assert equal(stream(alone, epoch=2), stream(with_workers, epoch=2))
    assert equal(list(alone.val_dataloader()), list(with_workers.val_dataloader()))


@pytest.mark.parametrize("shared", [True, False])
def test_batches_are_the_readers_own(heads, tmp_path, monkeypatch, shared):
    """They stay as they are while workers go on writing, after a break in mid-epoch too."""
    monkeypatch.setattr(datamodule, "can_share", lambda: shared)
    data = module(heads, tmp_path, augment=augmentations(), steps_per_epoch=30, workers=2)
    loader = data.train_dataloader()
    first = next(iter(loader))
    kept = {key: value.clone() for key, value in first.items()}
    every = list(loader)
    assert equal([first], [kept])
    assert equal(every[:1], [kept])
    assert len({tensor.data_ptr() for batch in every for tensor in batch.values()}) == 30 * len(first)
    assert equal(every, stream(module(heads, tmp_path, augment=augmentations(), steps_per_epoch=30)))


def test_label_maps_stay_narrow_until_they_are_on_the_device(heads, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = module(heads, tmp_path, steps_per_epoch=2, workers=1)
    loader = data.train_dataloader()
    assert loader.pin_memory
    (batch, _) = loader
    assert batch["label"].dtype == torch.uint8
    assert data.on_after_batch_transfer(batch, 0)["label"].dtype == torch.int64
    monkeypatch.undo()
    assert equal([data.on_after_batch_transfer(batch, 0)], stream(module(heads, tmp_path, steps_per_epoch=2))[:1])


class Ranks:
    """All that the module asks of a trainer."""

    def __init__(self, rank, world, epoch=0):
        self.global_rank, self.world_size, self.current_epoch = rank, world, epoch


def test_any_number_of_ranks_gives_the_same_stream(heads, tmp_path):
    one = module(heads, tmp_path, augment=augmentations(), steps_per_epoch=3)
    whole = stream(one, epoch=1)
    shares = []
    for rank in range(2):
        data = module(heads, tmp_path, augment=augmentations(), steps_per_epoch=3, batch_size=2)
        data.trainer = Ranks(rank, 2)
        shares.append(stream(data, epoch=1))
    joined = [{key: torch.cat([a[key], b[key]]) for key in a} for a, b in zip(*shares, strict=True)]
    assert equal(whole, joined)


def test_each_case_is_validated_by_one_rank(heads, tmp_path):
    seen = []
    for rank in range(2):
        data = module(heads, tmp_path, split=RandomSplit(0.5))
        data.trainer = Ranks(rank, 2)
        seen += [int(batch["case_id"]) for batch in data.val_dataloader()]
    assert sorted(data.case_ids[index] for index in seen) == sorted(data.split.val)


def test_an_epoch_does_not_depend_on_earlier_ones_nor_on_the_global_streams(heads, tmp_path):
    data = module(heads, tmp_path, augment=augmentations(), steps_per_epoch=3)
    second = stream(data, epoch=1)
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    stream(data, epoch=0)
    torch.rand(17)
    assert equal(stream(data, epoch=1), second)
    assert not equal(stream(data, epoch=0), second)
    assert not equal(stream(module(heads, tmp_path, augment=augmentations(), seed=1, steps_per_epoch=3), 1), second)


def test_loading_leaves_the_global_streams_alone(heads, tmp_path):
    data = module(heads, tmp_path, augment=[*augmentations(), tio.Lambda(lambda x: x + random.random())])
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    stream(data)
    list(data.val_dataloader())
    after = torch.rand(3), random.random(), np.random.rand(3)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    assert torch.equal(after[0], torch.rand(3))
    assert after[1] == random.random()
    assert np.array_equal(after[2], np.random.rand(3))


def test_other_peoples_random_transforms_are_functions_of_the_draw_too(heads, tmp_path):
    """MONAI's have generators of their own; a function may draw from numpy's or Python's global one."""

    def jitter(tensor):
        return tensor + np.random.rand() + random.random()

    def make():
        return module(
            heads,
            tmp_path,
            augment=[
                tio.MonaiAdapter(mt.Compose([mt.RandGaussianNoise(prob=0.7)]), include=["image"]),
                tio.MonaiAdapter(mt.RandScaleIntensityd(["image"], 0.5, prob=0.7)),
                tio.OneOf([tio.Lambda(jitter, types_to_apply=[tio.INTENSITY]), tio.RandomGamma()]),
            ],
            steps_per_epoch=3,
        )

    first = stream(make(), epoch=1)
    again = make()
    stream(again, epoch=0)
    assert equal(stream(again, epoch=1), first)
    values = torch.cat([batch["image"].flatten(1).mean(dim=1) for batch in first])
    assert len(values.unique()) == len(values)


class Records(L.LightningModule):
    """Keeps a digest of each batch it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch):
        self.seen.append((self.current_epoch, batch["case_id"].tolist(), batch["image"].sum().item()))
        return self.weight * batch["image"].mean()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveAfterValidation(L.Callback):
    def on_validation_end(self, trainer, task):
        trainer.save_checkpoint(f"{trainer.default_root_dir}/epoch{trainer.current_epoch}.ckpt")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("callbacks", [[SaveAfterValidation], []])
def test_a_resumed_fit_sees_what_an_uninterrupted_one_would(heads, tmp_path, workers, callbacks):
    def fit(epochs, checkpoint=None):
        task = Records()
        data = module(heads, tmp_path, augment=augmentations(), steps_per_epoch=3, workers=workers)
        trainer = L.Trainer(
            max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=[c() for c in callbacks],
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        return trainer, task.seen

    trainer, _ = fit(2)
    checkpoint = tmp_path / "epoch1.ckpt"
    if not callbacks:
        trainer.save_checkpoint(checkpoint)
    resumed = fit(4, checkpoint)[1]
    whole = fit(4)[1]
    assert len(whole) == 12
    assert resumed == whole[6:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_resumed_in_mid_epoch_goes_on_with_the_next_batch(heads, tmp_path, workers):
    def fit(checkpoint=None):
        task = Records()
        data = module(heads, tmp_path, augment=augmentations(), steps_per_epoch=5, workers=workers)
        trainer = L.Trainer(
            max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
            callbacks=[] if checkpoint else [SaveAt(8)],
        )  # fmt: skip
        trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        return task.seen

    whole = fit()
    assert len(whole) == 15
    assert fit(tmp_path / "step8.ckpt") == whole[8:]


class SaveAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/step{self.step}.ckpt")


def test_validation_batches_are_whole_cases(heads, tmp_path):
    data = module(heads, tmp_path)
    for batch, prepared in zip(data.val_dataloader(), data.prepared["val"], strict=True):
        assert batch["image"].shape == (1, 1, *prepared.shape)
        assert batch["label"].shape == (1, 1, *prepared.shape)
        expected = ZScore().scaling(prepared.stats[0]).apply(prepared.image())
        assert np.array_equal(batch["image"][0].numpy(), expected)
        assert data.case_ids[int(batch["case_id"])] == prepared.case.id
        assert batch["spacing"][0].tolist() == pytest.approx(prepared.spacing)


def test_pictures_lose_their_third_axis(tmp_path):
    root = fake.folders(tmp_path / "flat", cases=5, shape=(30, 26, 1))
    data = module(root, tmp_path, patch=Patch([16, 12]), augment=augmentations())
    assert data.spatial_dims == 2
    (batch, *_) = stream(data)
    assert batch["image"].shape == (4, 1, 16, 12)
    assert batch["label"].shape == (4, 1, 16, 12)
    assert batch["spacing"].shape == (4, 3)
    assert next(iter(data.val_dataloader()))["image"].ndim == 4
    assert data.signature()["patch_size"] == [16, 12]
    with pytest.raises(UsageError, match="2D"):
        module(root, tmp_path, patch=Patch([16, 12, 1]))


@pytest.mark.parametrize("multilabel", [False, True])
def test_classification(tmp_path, multilabel):
    path = fake.medmnist(tmp_path / "set.npz", classes=3, multilabel=multilabel)
    data = module(
        tmp_path, tmp_path, source=MedMNIST(str(path)), split=GivenSplit(), patch=None, augment=[RandomSpatial()]
    )
    (batch, *_) = stream(data)
    assert batch["image"].shape == (4, 1, 28, 28)
    assert "label" not in batch
    assert batch["target"].dtype == (torch.float32 if multilabel else torch.int64)
    assert batch["target"].shape == ((4, 3) if multilabel else (4,))
    assert data.signature()["multilabel"] is multilabel
    assert [len(b["case_id"]) for b in data.val_dataloader()] == [4, 4]
    whole = [index for b in data.test_dataloader() for index in b["case_id"].tolist()]
    assert [data.case_ids[index] for index in whole] == list(data.split.test)


def test_whole_images_of_several_sizes_are_brought_to_the_largest(heads, tmp_path):
    data = module(heads, tmp_path, patch=None)
    largest = np.max([c.shape for part in data.prepared.values() for c in part], axis=0).tolist()
    (batch, *_) = stream(data)
    assert list(batch["image"].shape[2:]) == largest == data.signature()["patch_size"]
    assert list(next(iter(data.val_dataloader()))["image"].shape[2:]) == list(data.prepared["val"][0].shape)


def test_unlabelled_cases(tmp_path):
    root = fake.decathlon(tmp_path / "task", cases=3, tests=3, shape=(16, 16, 16))
    source = Decathlon(str(root), unlabelled=True)
    data = module(
        root, tmp_path, source=source, patch=Patch([8, 8, 8], 1.0), augment=augmentations(), steps_per_epoch=6
    )
    seen = {}
    for batch in stream(data):
        for index, labelled, label in zip(batch["case_id"], batch["is_labelled"], batch["label"], strict=True):
            seen[data.case_ids[int(index)]] = bool(labelled)
            assert labelled or not label.any()
    listed = {case.id: case.label is not None for case in source.cases().cases}
    assert seen == {name: listed[name] for name in data.split.train}
    assert not all(seen.values())


def test_targets_that_are_missing_are_known_as_such(heads, tmp_path):
    rows = [
        {"id": f"c{n}", "image": str(heads / "images" / f"case_{n:02d}.nii.gz"), **({"target": n % 2} if n else {})}
        for n in range(4)
    ]
    path = fake.manifest(tmp_path / "cases.json", rows)
    data = module(
        heads, tmp_path, source=Manifest(str(path), unlabelled=True), patch=None, split=RandomSplit(0.25), batch_size=3
    )
    (batch,) = stream(data)
    for index, target, known in zip(batch["case_id"], batch["target"], batch["is_labelled"], strict=True):
        assert known == (data.case_ids[int(index)] != "c0")
        assert (target == -1) == (not known)


def test_channels_have_a_normaliser_each(heads, tmp_path):
    data = module(heads, tmp_path, normalise=[Window(0, 100)])
    assert data.signature()["normalise"] == [Window(0, 100).to_dict()]
    with pytest.raises(UsageError, match=r"2 normalisers.* 1 channel"):
        module(heads, tmp_path, normalise=[ZScore(), ZScore()])
    two = fake.folders(tmp_path / "two", cases=3, shape=(16, 16, 16), channels=2)
    data = module(two, tmp_path, normalise=[Window(0, 100), ZScore()], augment=augmentations())
    (batch, *_) = stream(data)
    assert batch["image"].shape[1] == 2
    assert len(data.signature()["channels"]) == 2


def test_the_signature_survives_json_and_weights_only(heads, tmp_path):
    signature = module(heads, tmp_path).signature()
    assert json.loads(json.dumps(signature)) == signature
    kept = io.BytesIO()
    torch.save(signature, kept)
    kept.seek(0)
    assert torch.load(kept, weights_only=True) == signature
    assert signature["spatial_dims"] == 3
    assert [label["value"] for label in signature["labels"]] == [0, 1, 2]
    assert signature["preparation"] == Preparation().to_dict()


def test_bad_cases(heads, tmp_path):
    fake.spoil(heads, "case_01", "shape")
    with pytest.raises(CaseError, match="case_01"):
        module(heads, tmp_path)
    data = module(heads, tmp_path, on_bad_case="skip")
    assert [bad.id for bad in data.bad] == ["case_01"]
    assert "case_01" not in data.case_ids
    assert len(data.case_ids) == len(data.digests) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failure_names_the_case_in_one_line(heads, tmp_path, workers):
    def fail(tensor):
        raise ValueError("no good")

    data = module(heads, tmp_path, augment=[tio.Lambda(fail)], workers=workers)
    with pytest.raises(SampleError) as caught:
        stream(data)
    assert re.fullmatch(r"case case-[0-9a-f]{10}: ValueError: no good", str(caught.value))


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("workers", -1), ("seed", -1), ("steps_per_epoch", 0)])
def test_impossible_numbers_are_refused(heads, tmp_path, name, value):
    with pytest.raises(UsageError, match=rf"data\.{name}"):
        module(heads, tmp_path, **{name: value})


def test_a_patch_of_the_wrong_dimension_is_refused(heads, tmp_path):
    with pytest.raises(UsageError, match="write 3 numbers"):
        module(heads, tmp_path, patch=Patch([8, 8]))


def test_a_yaml_names_it_all_by_class_path(heads, tmp_path):
    arguments = {
        "source": {
            "class_path": "medlight.prepare.ImageFolders",
            "init_args": {"images": str(heads / "images"), "labels": str(heads / "labels")},
        },
        "split": {"class_path": "medlight.prepare.KFold", "init_args": {"folds": 3}},
        "preparation": {"spacing": [1, 1, 2]},
        "normalise": [{"class_path": "medlight.prepare.Percentile", "init_args": {"low": 1, "high": 99}}],
        "patch": {"size": [8, 8, 8], "foreground": 0.5},
        "augment": [
            {"class_path": "medlight.data.augment.RandomSpatial", "init_args": {"scales": [0.8, 1.2], "axes": [0, 1]}},
            {"class_path": "medlight.data.augment.RandomAnisotropy", "init_args": {"downsampling": 2, "p": 0.1}},
            {"class_path": "torchio.RandomGamma", "init_args": {"log_gamma": [-0.2, 0.2], "p": 0.3}},
        ],
        "store_dir": str(tmp_path / "store"),
    }
    cli = LightningCLI(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        run=False,
        save_config_callback=None,
        trainer_defaults={"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "barebones": True},
        args={
            "model": {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"},
            "data": {"class_path": "medlight.data.ScanDataModule", "init_args": arguments},
        },
    )
    data = cli.datamodule
    data.prepare_data()
    data.setup("fit")
    assert [type(t).__name__ for t in data.augment] == ["RandomSpatial", "RandomAnisotropy", "RandomGamma"]
    assert data.augment[0].axes == (0, 1)
    assert data.augment[0].scales == (0.8, 1.2) * 3
    assert data.augment[1].probability == 0.1
    (batch, *_) = stream(data)
    assert batch["image"].shape == (2, 1, 8, 8, 8)
    assert batch["spacing"][0].tolist() == [1, 1, 2]
    assert data.signature()["normalise"][0]["class_path"] == "medlight.prepare.Percentile"


def test_hippocampus(data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDLIGHT_DATA", str(data_root))
    source = ImageFolders("hippocampus/images", "hippocampus/labels", {1: "anterior", 2: "posterior"})
    data = module(
        tmp_path, tmp_path, source=source, patch=Patch([40, 56, 40]), augment=augmentations(), steps_per_epoch=3
    )
    assert len(data.case_ids) == 208
    for batch in stream(data):
        assert batch["image"].isfinite().all()
        assert -1 < batch["image"].mean() < 1
        assert set(batch["label"].unique().tolist()) == {0, 1, 2}
