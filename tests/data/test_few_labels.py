"""FewLabelsDataModule: which cases keep their label, and how batches mix them with the others."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
import torchio as tio
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.cli import LightningCLI

from medlight.data import FewLabelsDataModule, Patch, ScanDataModule
from medlight.data.augment import RandomSpatial
from medlight.data.sampler import InTurn, Mixed, MixedSampler
from medlight.data.subsets import Member, chosen, in_order, least
from medlight.errors import MedlightError, UsageError
from medlight.prepare import Decathlon, GivenSplit, ImageFolders, Manifest, MedMNIST, PreparedCase, RandomSplit
from medlight.tracking.manifest import data_fingerprint
from tests.data import fake
from tests.data.test_datamodule import Ranks, Records, SaveAt, equal, stream


@pytest.fixture
def heads(tmp_path):
    return fake.folders(tmp_path / "scans", cases=9, shape=(20, 22, 18))


def few(root, tmp_path, **changed):
    arguments = {
        "labelled": 2,
        "source": ImageFolders(str(root / "images"), str(root / "labels")),
        "split": RandomSplit(0.2),
        "patch": Patch([12, 16, 10], 1.0),
        "batch_size": 4,
        "store_dir": str(tmp_path / "store"),
        **changed,
    }
    data = FewLabelsDataModule(**arguments)
    data.prepare_data()
    data.setup("fit")
    return data


def pictures(tmp_path, **changed):
    path = tmp_path / "set.npz"
    if not path.exists():
        fake.medmnist(path, classes=3, multilabel=changed.pop("multilabel", False))
    return few(tmp_path, tmp_path, **{"source": MedMNIST(str(path)), "split": GivenSplit(), "patch": None, **changed})


# Subsets.

classes = st.frozensets(st.sampled_from(["a", "b", "c"]), max_size=3)


@st.composite
def members(draw, shows=classes):
    """Cases of subjects of one to three cases, or of no known subject, in any order."""
    found = []
    for subject in range(draw(st.integers(1, 12))):
        count = draw(st.integers(1, 3))
        name = draw(st.sampled_from([None, f"s{subject}"]))
        found += [Member(f"{subject}-{n}", name, draw(shows)) for n in range(count)]
    return draw(st.permutations(found))


@given(members(), st.integers(0, 99), st.data())
def test_a_larger_subset_holds_the_smaller(cases, seed, data):
    counts = sorted(data.draw(st.lists(st.integers(1, len(cases)), min_size=2, max_size=2)))
    smaller, larger = (chosen(cases, count, seed) for count in counts)
    assert smaller <= larger <= {case.id for case in cases}
    assert all(count <= len(found) <= count + 2 for count, found in zip(counts, (smaller, larger), strict=True))


@given(members(), st.integers(0, 99), st.data())
def test_subjects_stay_whole_and_the_order_of_the_list_is_nothing(cases, seed, data):
    found = chosen(cases, data.draw(st.integers(1, len(cases))), seed)
    kept = {case.subject for case in cases if case.id in found and case.subject}
    assert all(case.id in found for case in cases if case.subject in kept)
    assert chosen(data.draw(st.permutations(cases)), len(found), seed) == found


@given(members(), st.integers(0, 99))
def test_every_class_is_there_as_soon_as_can_be(cases, seed):
    whole = frozenset().union(*(case.classes for case in cases))

    def shown(count):
        return frozenset().union(*(case.classes for case in cases if case.id in chosen(cases, count, seed)))

    enough = least(cases, seed)
    assert enough <= 3 * len(whole)  # a subject of three cases for each class, at worst
    assert shown(enough) == whole if enough else not whole


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.integers(0, 99))
def test_classes_keep_their_shares(sizes, seed):
    cases = [
        Member(f"{name}-{n}", None, frozenset([str(name)])) for name, size in enumerate(sizes) for n in range(size)
    ]
    found = Counter()
    for count, (case,) in enumerate(in_order(cases, seed), 1):
        found[case.split("-")[0]] += 1
        if count < len(sizes):
            continue
        for name, size in enumerate(sizes):
            assert 1 <= found[str(name)] <= size
            # none is more than one case off its share, but for those that had to be there first
            assert found[str(name)] >= count * size / len(cases) - len(sizes)
            assert found[str(name)] <= max(1, count * size / len(cases) + 1)


def test_the_choice_is_the_same_on_any_machine():
    cases = [Member(f"c{n:02d}", None, frozenset([str(n % 2)])) for n in range(20)]
    assert sorted(chosen(cases, 4, 0)) == ["c00", "c03", "c09", "c12"]
    assert chosen(cases, 4, 0) != chosen(cases, 4, 1)


# Streams.


@given(
    st.integers(1, 9), st.integers(1, 30), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 2, 4]),
    st.integers(0, 3), st.integers(0, 9),
)  # fmt: skip
def test_ranks_share_what_one_process_would_draw(labelled, others, first, rest, world, epoch, seed):
    steps, size = 3, first + rest
    order = Mixed(
        InTurn(seed, range(labelled)), InTurn(seed, range(labelled, labelled + others), 1), first * world, size * world
    )
    whole = MixedSampler(steps, size * world, first * world)
    shares = [MixedSampler(steps, size, first, rank, world) for rank in range(world)]
    for sampler in (whole, *shares):
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
    drawn, parts = list(whole), [list(share) for share in shares]
    assert drawn == list(range(epoch * steps * size * world, (epoch + 1) * steps * size * world))
    for step in range(steps):
        batches = [part[step * size : (step + 1) * size] for part in parts]
        together = sorted(draw for batch in batches for draw in batch)
        assert together == drawn[step * size * world : (step + 1) * size * world]
        for batch in batches:
            assert [order(draw) < labelled for draw in batch] == [True] * first + [False] * rest


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 3), st.integers(1, 4), st.integers(0, 9))
def test_each_case_of_a_kind_comes_as_often_as_any_other(labelled, others, first, rest, seed):
    order = Mixed(InTurn(seed, range(labelled)), InTurn(seed, range(100, 100 + others), 1), first, first + rest)
    steps = labelled * others  # whole turns of both kinds
    seen = Counter(order(draw) for draw in range(steps * (first + rest)))
    assert seen == {
        **dict.fromkeys(range(labelled), others * first),
        **dict.fromkeys(range(100, 100 + others), labelled * rest),
    }


# Batches.


def test_a_batch_begins_with_the_labelled_ones(heads, tmp_path):
    data = few(heads, tmp_path, labelled_per_batch=1, augment=[RandomSpatial(0.2, 20)], steps_per_epoch=12)
    seen = Counter()
    for batch in stream(data):
        assert batch["is_labelled"].tolist() == [True, False, False, False]
        names = [data.case_ids[index] for index in batch["case_id"].tolist()]
        assert [name in data.labelled_ids for name in names] == batch["is_labelled"].tolist()
        assert batch["label"][0].any()  # a foreground voxel is in its middle
        assert not batch["label"][1:].any()
        seen.update(names)
    assert set(seen) == set(data.split.train)
    assert {seen[name] for name in data.labelled_ids} == {6}
    assert data.signature()["few_labels"] == {"labelled": 2, "unlabelled": 5, "labelled_per_batch": 1}
    assert json.loads(json.dumps(data.signature())) == data.signature()
    assert all(batch["is_labelled"].all() and batch["label"].any() for batch in data.val_dataloader())


def test_an_epoch_shows_about_every_unlabelled_case_once(heads, tmp_path):
    data = few(heads, tmp_path, labelled_per_batch=1, batch_size=2)
    assert len(data.train_dataloader()) == 5
    unlabelled = [int(index) for batch in stream(data) for index in batch["case_id"][1:]]
    assert len(set(unlabelled)) == 5
    data.trainer = Ranks(0, 2)
    assert len(data.train_dataloader()) == 2
    alone = few(heads, tmp_path, labelled=4, batch_size=2)
    assert len(alone.train_dataloader()) == 2


def test_without_a_mixture_only_labelled_cases_are_trained_on(heads, tmp_path):
    data = few(heads, tmp_path, labelled=3, steps_per_epoch=6)
    seen = Counter(data.case_ids[index] for batch in stream(data) for index in batch["case_id"].tolist())
    assert seen == dict.fromkeys(data.labelled_ids, 8)
    assert len(few(heads, tmp_path, labelled=1.0).labelled_ids) == 7


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_ranks_and_epochs_change_nothing(heads, tmp_path, workers):
    options = {"augment": [RandomSpatial(0.2, 20)], "views": [[tio.RandomGamma()], []], "steps_per_epoch": 4}
    whole = stream(few(heads, tmp_path, labelled_per_batch=2, **options), epoch=1)
    assert equal(whole, stream(few(heads, tmp_path, labelled_per_batch=2, workers=workers, **options), epoch=1))
    shares = []
    for rank in range(2):
        data = few(heads, tmp_path, labelled_per_batch=1, batch_size=2, **options)
        data.trainer = Ranks(rank, 2)
        shares.append(stream(data, epoch=1))
    joined = [{key: torch.stack([a[key], b[key]], 1).flatten(0, 1) for key in a} for a, b in zip(*shares, strict=True)]
    assert equal(whole, joined)


def test_a_fit_resumed_in_mid_epoch_goes_on_with_the_next_batch(heads, tmp_path):
    import lightning as L

    def fit(checkpoint=None):
        task, data = Records(), few(heads, tmp_path, labelled_per_batch=1, steps_per_epoch=5)
        trainer = L.Trainer(
            max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
            callbacks=[] if checkpoint else [SaveAt(7)],
        )  # fmt: skip
        trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        return task.seen

    whole = fit()
    assert fit(tmp_path / "step7.ckpt") == whole[7:]


def test_hidden_labels_are_never_read(heads, tmp_path, monkeypatch):
    data = few(heads, tmp_path, labelled=3, labelled_per_batch=2, steps_per_epoch=9)
    kept = {c.path for part, cases in data.prepared.items() for c in cases if part != "train"}
    kept |= {c.path for c in data.prepared["train"] if c.case.id in data.labelled_ids}
    read = PreparedCase._map
    asked = set()

    def spied(case, name):
        if name != "image":
            assert case.path in kept
            asked.add(case.path)
        return read(case, name)

    monkeypatch.setattr(PreparedCase, "_map", spied)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)
    monkeypatch.undo()
    assert asked == kept
    hidden = next(c for c in data.prepared["train"] if c.case.id not in data.labelled_ids)
    assert not hidden.has_label
    assert not hidden.foreground(1).size
    with pytest.raises(MedlightError, match="has no label"):
        hidden.label()


def test_hidden_labels_may_be_spoiled_in_the_store(heads, tmp_path):
    data = few(heads, tmp_path, labelled_per_batch=2, steps_per_epoch=3)
    before = stream(data)
    source = ScanDataModule(**{
        "source": data.source, "split": data.splitter, "patch": data.patch, "store_dir": data.store_dir
    })  # fmt: skip
    source.setup("fit")
    for case in source.prepared["train"]:
        if case.case.id not in data.labelled_ids:
            with case.path.open("r+b") as file:
                file.seek(case.places["label"][2])
                file.write(b"\xff" * int(np.prod(case.shape)))
    assert equal(before, stream(few(heads, tmp_path, labelled_per_batch=2, steps_per_epoch=3)))


@pytest.mark.parametrize("multilabel", [False, True])
def test_pictures_with_targets(tmp_path, multilabel):
    data = pictures(tmp_path, multilabel=multilabel, labelled=6, labelled_per_batch=2)
    kept = [c.case.target for c in data.prepared["train"] if c.case.target is not None]
    if multilabel:
        assert np.array(kept).any(axis=0).all()
    else:
        assert Counter(kept) == {0: 2, 1: 2, 2: 2}
    (batch, *_) = stream(data)
    target = batch["target"]
    assert batch["is_labelled"].tolist() == [True, True, False, False]
    assert (target[:2] >= 0).all()
    assert (target[2:].isnan() if multilabel else target[2:] == -1).all()
    assert data.signature()["multilabel"] is multilabel


def test_cases_without_a_label_are_always_unlabelled(tmp_path):
    root = fake.decathlon(tmp_path / "task", cases=4, tests=3, shape=(16, 16, 16))
    source = Decathlon(str(root), unlabelled=True)
    data = few(root, tmp_path, source=source, patch=Patch([8, 8, 8]), labelled=0.5, labelled_per_batch=1, batch_size=2)
    listed = {case.id for case in source.cases().cases if case.label is not None}
    assert set(data.labelled_ids) <= listed
    assert len(data.labelled_ids) == round(len(listed & set(data.split.train)) / 2)
    bare = next(name for name in data.split.train if name not in listed)
    with pytest.raises(UsageError, match=rf"case '{bare}' has no label"):
        few(root, tmp_path, source=source, patch=Patch([8, 8, 8]), labelled=[bare])


def test_a_run_records_who_kept_a_label(heads, tmp_path):
    data = few(heads, tmp_path)
    recorded = data_fingerprint(data)
    assert recorded["labelled"] == [data.recorded[name] for name in data.labelled_ids]
    assert not set(recorded["labelled"]) & set(data.labelled_ids)  # files' names stay out of it
    other = few(heads, tmp_path, labelled=3)
    assert set(data.labelled_ids) < set(other.labelled_ids)
    assert data_fingerprint(other)["digest"] != recorded["digest"]
    again = few(heads, tmp_path, labelled=sorted(data.labelled_ids, reverse=True))
    assert data_fingerprint(again) == recorded


# What is refused.


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labelled": 0}, "0 leaves no labelled case"),
        ({"labelled": 0.0}, "is no share"),
        ({"labelled": 1.5}, "is no share"),
        ({"labelled": True}, "is no share"),
        ({"labelled": []}, "lists no case"),
        ({"labelled": ["case_01", "case_01"]}, "lists 'case_01' twice"),
        ({"labelled": 8}, "8 is more than the 7 training cases"),
        ({"labelled": ["case_1"]}, r"no training case has the id 'case_1' \(did you mean 'case_01'\?\)"),
        ({"labelled": 7, "labelled_per_batch": 2}, "all 7 training cases are labelled"),
        ({"labelled_per_batch": 0}, "leaves no place for labelled"),
        ({"labelled_per_batch": 4}, "leaves no place for unlabelled"),
    ],
)
def test_refused_in_one_line(heads, tmp_path, changed, said):
    with pytest.raises(UsageError, match=said) as caught:
        few(heads, tmp_path, **changed)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("data.labelled")


def test_classes_left_out_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"2 cases leave out class '?\w+'?; 3 labelled cases have all"):
        pictures(tmp_path, labelled=2)
    with pytest.raises(UsageError, match="list a case of it"):
        pictures(tmp_path, labelled=["train_00000", "train_00001"])


def test_validation_cases_and_sets_without_labels_are_refused(heads, tmp_path):
    held_out = few(heads, tmp_path).split.val[0]
    with pytest.raises(UsageError, match=rf"case '{held_out}' is in val, not in train"):
        few(heads, tmp_path, labelled=[held_out])
    with pytest.raises(UsageError, match="no training case has a label"):
        few(heads, tmp_path, source=ImageFolders(str(heads / "images"), None, unlabelled=True))


def test_what_was_refused_stays_refused(heads, tmp_path):
    data = FewLabelsDataModule(
        8, source=ImageFolders(str(heads / "images"), str(heads / "labels")), split=RandomSplit(0.2),
        store_dir=str(tmp_path / "store"),
    )  # fmt: skip
    for step in (data.prepare_data, data.setup):
        with pytest.raises(UsageError):
            step()


def test_whole_subjects_of_a_manifest(heads, tmp_path):
    images = heads / "images"
    rows = [
        {"id": f"c{n}", "image": str(images / f"case_{n:02d}.nii.gz"), "target": n % 2, "subject": f"s{n // 3}",
         "split": "val" if n > 5 else "train"}
        for n in range(9)
    ]  # fmt: skip
    random.Random(3).shuffle(rows)
    path = fake.manifest(tmp_path / "cases.json", rows)
    data = few(heads, tmp_path, source=Manifest(str(path)), patch=None, split=GivenSplit(), labelled_per_batch=1)
    assert sorted(data.labelled_ids) in (["c0", "c1", "c2"], ["c3", "c4", "c5"])


def test_a_yaml_takes_the_parents_arguments(heads, tmp_path):
    arguments = {
        "labelled": 0.3,
        "labelled_per_batch": 1,
        "views": [[{"class_path": "torchio.RandomGamma"}], []],
        "source": {
            "class_path": "medlight.prepare.ImageFolders",
            "init_args": {"images": str(heads / "images"), "labels": str(heads / "labels")},
        },
        "split": {"class_path": "medlight.prepare.KFold", "init_args": {"folds": 3}},
        "patch": {"size": [8, 8, 8], "foreground": 0.5},
        "batch_size": 3,
        "store_dir": str(tmp_path / "store"),
    }
    given_ = {"class_path": "medlight.data.FewLabelsDataModule", "init_args": arguments}
    cli = LightningCLI(
        Records, run=False, save_config_callback=None, subclass_mode_data=True, args={"data": given_},
        trainer_defaults={"logger": False, "enable_checkpointing": False, "accelerator": "cpu"},
    )  # fmt: skip
    data = cli.datamodule
    data.setup("fit")
    assert (len(data.labelled_ids), data.batch_size, len(data.views)) == (2, 3, 2)
    assert next(iter(data.train_dataloader()))["views"].shape == (3, 2, 1, 8, 8, 8)
