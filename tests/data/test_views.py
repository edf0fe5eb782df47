"""ViewsDataModule and PretrainingDataModule: what views are made of, and that they are functions of the draw alone."""

import numpy as np
import pytest
import torch
import torchio as tio
from monai import transforms as mt

from medlight.data import Patch, PretrainingDataModule, ScanDataModule, ViewsDataModule
from medlight.data.augment import RandomAnisotropy, RandomBiasField, RandomSpatial
from medlight.data.dataset import SampleError
from medlight.errors import UsageError
from medlight.prepare import GivenSplit, ImageFolders, MedMNIST, PreparedCase, RandomSplit
from tests.data import fake
from tests.data.test_datamodule import Ranks, equal, stream


@pytest.fixture
def heads(tmp_path):
    return fake.folders(tmp_path / "scans", cases=6, shape=(20, 22, 18))


def module(root, tmp_path, kind=ViewsDataModule, **changed):
    arguments = {
        "source": ImageFolders(str(root / "images"), str(root / "labels")),
        "split": RandomSplit(0.34),
        "patch": Patch([12, 16, 10]),
        "batch_size": 4,
        "steps_per_epoch": 3,
        "store_dir": str(tmp_path / "store"),
        **changed,
    }
    data = kind(**arguments)
    data.prepare_data()
    data.setup("fit")
    return data


def shared():
    return [RandomSpatial(0.2, 20, max_displacement=2, num_control_points=5, p=0.8), tio.RandomNoise(p=0.5)]


def intensities():
    return [[tio.RandomGamma(), RandomBiasField(0.4)], [tio.RandomNoise(std=(0.1, 0.2))]]


def test_views_leave_the_rest_of_a_batch_as_it_is(heads, tmp_path):
    plain = stream(module(heads, tmp_path, ScanDataModule, augment=shared()))
    batches = stream(module(heads, tmp_path, augment=shared(), views=[*intensities(), []]))
    for batch, other in zip(batches, plain, strict=True):
        views = batch.pop("views")
        assert (views.shape, views.dtype) == ((4, 3, 1, 12, 16, 10), torch.float32)
        assert torch.equal(views[:, 2], batch["image"])
        assert not torch.equal(views[:, 0], batch["image"])
        assert not torch.equal(views[:, 1], batch["image"])
        assert equal([batch], [other])
    assert "views" not in stream(module(heads, tmp_path))[0]


def test_a_view_is_its_transforms_on_the_image(heads, tmp_path):
    (batch, *_) = stream(
        module(heads, tmp_path, augment=shared(), views=[[tio.Lambda(lambda x: 2 * x + 1)], [tio.RandomFlip((0,), 1)]])
    )
    assert torch.equal(batch["views"][:, 0], 2 * batch["image"] + 1)
    assert torch.equal(batch["views"][:, 1], batch["image"].flip(2))


def test_transforms_that_write_into_their_input_touch_one_view_only(heads, tmp_path):
    (batch, *_) = stream(module(heads, tmp_path, views=[[tio.Lambda(lambda x: x.mul_(3))], [], []]))
    assert torch.equal(batch["views"][:, 1], batch["image"])
    assert torch.equal(batch["views"][:, 0], 3 * batch["image"])


def test_a_view_is_drawn_by_its_own_number(heads, tmp_path):
    """Another view's transforms, and the shared ones, draw as much as they like."""
    noise = [tio.RandomNoise(std=(0.1, 0.2))]
    one = stream(module(heads, tmp_path, views=[[tio.RandomGamma()], noise]))
    other = stream(module(heads, tmp_path, augment=[tio.RandomNoise(std=0)], views=[[], noise]))
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a["views"][:, 1] - a["image"], b["views"][:, 1] - b["image"], atol=1e-5)
    twins = stream(module(heads, tmp_path, views=[noise, noise]))
    noises = torch.cat([(b["views"] - b["image"][:, None]).flatten(0, 1).flatten(1) for b in twins])
    assert len(noises.sum(1).unique()) == len(noises)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_ranks_and_epochs_change_nothing(heads, tmp_path, workers):
    views = [[RandomSpatial(0.3, 30, axes=(0, 1)), tio.RandomGamma()], [tio.MonaiAdapter(mt.RandGaussianNoise(prob=1))]]
    alone = module(heads, tmp_path, augment=shared(), views=views)
    whole = stream(alone, epoch=1)
    stream(alone, epoch=0)
    assert equal(stream(alone, epoch=1), whole)
    assert equal(stream(module(heads, tmp_path, augment=shared(), views=views, workers=workers), epoch=1), whole)
    shares = []
    for rank in range(2):
        data = module(heads, tmp_path, augment=shared(), views=views, batch_size=2)
        data.trainer = Ranks(rank, 2)
        shares.append(stream(data, epoch=1))
    joined = [{key: torch.cat([a[key], b[key]]) for key in a} for a, b in zip(*shares, strict=True)]
    assert equal(whole, joined)


def test_a_view_sees_beyond_the_patch(heads, tmp_path):
    """What a moving view shows is what the same movement shows of the whole image, as far as that goes."""
    move = {"scales": 0.0, "degrees": 0.0, "translation": (3, 3, 0, 0, 0, 0)}
    data = module(heads, tmp_path, views=[[RandomSpatial(**move)]], patch=Patch([8, 8, 8], 0.0), steps_per_epoch=8)
    cases = {case.case.id: case for case in data.prepared["train"]}
    inside = 0
    for batch in stream(data):
        for image, view, index in zip(batch["image"], batch["views"], batch["case_id"], strict=True):
            whole = data._reader("train").image(
                [c.case.id for c in data.prepared["train"]].index(data.case_ids[int(index)]),
                _all(cases[data.case_ids[int(index)]]),
            )
            low = _found(whole[0].numpy(), image[0].numpy())
            if low[0] >= 3:
                inside += 1
                i, j, k = low
                assert np.allclose(view[0, 0].numpy(), whole[0, i - 3 : i + 5, j : j + 8, k : k + 8], atol=1e-5)
    assert inside > 5


def _all(case):
    from medlight.data.patches import Window

    return Window((0, 0, 0), case.shape)


def _found(whole, patch):
    windows = np.lib.stride_tricks.sliding_window_view(whole, patch.shape)
    ((i, j, k),) = np.argwhere((windows == patch).all(axis=(3, 4, 5)))
    return i, j, k


def test_outside_of_the_scan_a_view_has_its_own_padding(tmp_path):
    path = fake.medmnist(tmp_path / "set.npz")
    turn = RandomSpatial(scales=0, degrees=45, default_pad_value="minimum")
    data = module(
        tmp_path,
        tmp_path,
        source=MedMNIST(str(path)),
        split=GivenSplit(),
        patch=None,
        views=[[turn]],
        steps_per_epoch=6,
    )
    for batch in stream(data):
        least = batch["image"].flatten(1).min(1).values
        assert torch.allclose(batch["views"][:, 0].flatten(1).min(1).values, least, atol=0.6)
        assert (least < -0.5).all()


def test_pictures_lose_their_third_axis(tmp_path):
    path = fake.medmnist(tmp_path / "set.npz", colour=True)
    data = module(
        tmp_path, tmp_path, source=MedMNIST(str(path)), split=GivenSplit(), patch=None, views=intensities(), workers=1
    )
    (batch, *_) = stream(data)
    assert batch["views"].shape == (4, 2, 3, 28, 28)


@pytest.mark.parametrize(
    ("transform", "moving"),
    [
        (tio.RandomGamma(), False),
        (RandomAnisotropy(), False),
        (tio.RandomFlip(), True),
        (RandomSpatial(), True),
        (tio.OneOf([tio.RandomNoise(), tio.Compose([tio.RandomAffine()])]), True),
        (tio.MonaiAdapter(mt.RandFlip(prob=1)), True),
        (tio.MonaiAdapter(mt.Compose([mt.RandGaussianNoise(), mt.RandSpatialCrop(4)])), True),
        (tio.MonaiAdapter(mt.RandGaussianNoise()), False),
    ],
)
def test_what_moves(heads, tmp_path, transform, moving):
    data = ViewsDataModule([[], [transform]], source=None, split=None, store_dir=str(tmp_path))
    assert data.views_move is moving


def test_a_view_of_another_size_is_refused(heads, tmp_path):
    with pytest.raises(SampleError, match=r"data\.views\[1\]: the transforms turned a patch"):
        stream(module(heads, tmp_path, views=[[], [tio.CropOrPad(6)]]))


# Pre-training.


def test_pretraining_without_any_label(heads, tmp_path):
    source = ImageFolders(str(heads / "images"), None, unlabelled=True)
    data = module(heads, tmp_path, PretrainingDataModule, source=source, views=intensities(), val_patches=3)
    (batch, *_) = stream(data)
    assert batch["views"].shape == (4, 2, 1, 12, 16, 10)
    assert "label" not in batch
    for loader, part in ((data.val_dataloader(), "val"), (data.train_bank_dataloader(), "train")):
        batches = list(loader)
        ids = [index for b in batches for index in b["case_id"].tolist()]
        assert [data.case_ids[index] for index in ids] == [
            name for name in data.split.to_dict()[part] for _ in range(3)
        ]
        assert batches[0]["image"].shape == (4, 1, 12, 16, 10)
        assert ("views" in batches[0]) is (part == "val")
        assert equal(batches, list(loader))


def test_no_label_has_a_say_in_where_patches_lie(heads, tmp_path, monkeypatch):
    def never(case, value):
        raise AssertionError("asked for the foreground")

    monkeypatch.setattr(PreparedCase, "foreground", never)
    data = module(heads, tmp_path, PretrainingDataModule, patch=Patch([8, 8, 8], 1.0), views=[[]])
    assert {"label", "views"} < stream(data)[0].keys()
    assert next(iter(data.val_dataloader()))["label"].shape == (4, 1, 8, 8, 8)


def test_fixed_patches_belong_to_the_case(heads, tmp_path):
    """Whatever other cases there are; each is a part of its image, with its label map."""
    one = module(heads, tmp_path, PretrainingDataModule)
    other = module(heads, tmp_path, PretrainingDataModule, split=RandomSplit(0.6))
    kept = {one.case_ids[int(b)]: None for b in torch.cat([b["case_id"] for b in one.val_dataloader()])}
    assert set(kept) <= set(other.split.val)

    def by_case(data):
        found = {}
        for batch in data.val_dataloader():
            for index, image, label in zip(batch["case_id"], batch["image"], batch["label"], strict=True):
                found.setdefault(data.case_ids[int(index)], []).append((image, label))
        return found

    first, second = by_case(one), by_case(other)
    for number, case in enumerate(one.prepared["val"]):
        pairs = first[case.case.id]
        assert len(pairs) == 4
        assert all(torch.equal(a[0], b[0]) for a, b in zip(pairs, second[case.case.id], strict=True))
        whole = one._reader("val").image(number, _all(case))[0].numpy()
        for image, label in pairs:
            i, j, k = _found(whole, image[0].numpy())
            assert np.array_equal(case.label()[i : i + 12, j : j + 16, k : k + 10], label[0].numpy())


def test_each_fixed_sample_is_seen_by_one_rank(heads, tmp_path):
    seen = []
    for rank in range(2):
        data = module(heads, tmp_path, PretrainingDataModule, val_patches=3)
        data.trainer = Ranks(rank, 2)
        seen += [int(index) for batch in data.val_dataloader() for index in batch["case_id"]]
    assert sorted(data.case_ids[index] for index in seen) == sorted(name for name in data.split.val for _ in range(3))


def test_whole_images_are_batched(heads, tmp_path):
    data = module(heads, tmp_path, PretrainingDataModule, patch=None, batch_size=2)
    assert [tuple(b["image"].shape[2:]) for b in data.val_dataloader()] == [data.patch_shape]
    assert next(iter(data.val_dataloader()))["label"].shape == (2, 1, *data.patch_shape)
    path = fake.medmnist(tmp_path / "set.npz")
    data = module(tmp_path, tmp_path, PretrainingDataModule, source=MedMNIST(str(path)), split=GivenSplit(), patch=None)
    targets = torch.cat([batch["target"] for batch in data.train_bank_dataloader()])
    assert targets.tolist() == [case.case.target for case in data.prepared["train"]]


def test_no_patches_are_refused(heads, tmp_path):
    with pytest.raises(UsageError, match=r"data\.val_patches"):
        module(heads, tmp_path, PretrainingDataModule, val_patches=0)
