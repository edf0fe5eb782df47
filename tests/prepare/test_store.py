"""The store: computed once, whole or not at all, and read a slab at a time."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import load_file

from medlight.errors import CaseError, MedlightError
from medlight.prepare import Case, ImageFolders, Label, MedMNIST, Preparation, Store, cases_with
from medlight.prepare import store as store_module
from medlight.prepare.prepared import open_prepared
from medlight.scans import Volume, write_nifti
from tests.data import fake


def source(root, **options):
    return ImageFolders(str(root / "images"), str(root / "labels"), **options)


@pytest.fixture
def root(tmp_path):
    return fake.folders(tmp_path / "data", 4, (12, 13, 11))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_nothing_is_computed_twice(root, store):
    found = source(root).cases()
    first = store.prepare(found, Preparation())
    again = store.prepare(found, Preparation())
    assert (first.computed, first.reused) == (4, 0)
    assert (again.computed, again.reused) == (0, 4)
    assert [c.key for c in again.cases] == [c.key for c in first.cases]
    assert [c.case.id for c in again.cases] == [case.id for case in found.cases]


def test_changed_input_or_spec_means_another_key(root, store):
    first = store.prepare(source(root).cases(), Preparation())
    other = store.prepare(source(root).cases(), Preparation([2.0, 2.0, 2.0]))
    assert other.computed == 4
    assert [c.digest for c in other.cases] == [c.digest for c in first.cases]
    image, _ = fake.volume((12, 13, 11), seed=77)
    write_nifti(image, root / "images" / "case_00.nii.gz")
    _, label = fake.volume((12, 13, 11), seed=77)
    write_nifti(label, root / "labels" / "case_00.nii.gz")
    changed = store.prepare(source(root).cases(), Preparation())
    assert (changed.computed, changed.reused) == (1, 3)
    assert changed.cases[0].key != first.cases[0].key
    np.testing.assert_allclose(changed.cases[0].image()[0], image.array[0])


def test_content_counts_and_names_do_not(root, store, tmp_path):
    first = store.prepare(source(root).cases(), Preparation())
    (root / "images").rename(tmp_path / "images")
    (root / "labels").rename(tmp_path / "labels")
    for folder in ("images", "labels"):
        (tmp_path / folder / "case_00.nii.gz").rename(tmp_path / folder / "other.nii.gz")
    moved = store.prepare(source(tmp_path).cases(), Preparation())
    assert moved.computed == 0
    assert {c.key for c in moved.cases} == {c.key for c in first.cases}


def test_facts_and_voxels(root, store):
    done = store.prepare(source(root).cases(), Preparation([1.5, 1.5, 1.5], "LPS")).cases[1]
    direct = Preparation([1.5, 1.5, 1.5], "LPS").prepare(done.case)
    np.testing.assert_array_equal(done.image(), direct.image)
    np.testing.assert_array_equal(done.label(), direct.label)
    np.testing.assert_array_equal(done.affine, direct.affine)
    np.testing.assert_array_equal(done.original_affine, direct.original_affine)
    assert done.original_shape == direct.original_shape
    assert done.shape == direct.image.shape[1:]
    assert done.spacing == pytest.approx((1.5, 1.5, 1.5))
    assert done.stats == direct.stats
    assert done.counts == direct.counts
    assert done.channels == ("image",)
    for value in (1, 2):
        np.testing.assert_array_equal(done.foreground(value), direct.foreground[value])
    assert done.foreground(9).shape == (0, 3)
    slices = (slice(1, 4), slice(2, 7), slice(0, 3))
    np.testing.assert_array_equal(done.image_slab(slices), direct.image[:, 1:4, 2:7, 0:3])
    np.testing.assert_array_equal(done.label_slab(slices), direct.label[1:4, 2:7, 0:3])
    by_library = load_file(done.path)
    np.testing.assert_array_equal(by_library["image"], direct.image)
    np.testing.assert_array_equal(by_library["label"], direct.label)


def test_a_slab_reads_only_itself(store, tmp_path):
    array = np.random.default_rng(0).random((1, 128, 128, 128), np.float32)
    write_nifti(Volume(array, np.eye(4)), tmp_path / "x.nii")
    done = store.prepare([Case("x", {"image": tmp_path / "x.nii"})], Preparation()).cases[0]
    again = pickle.loads(pickle.dumps(done))
    assert len(pickle.dumps(done)) < 10_000
    tracemalloc.start()
    before = pages()
    slab = again.image_slab((slice(60, 64), slice(10, 20), slice(30, 40)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(slab, array[:, 60:64, 10:20, 30:40])
    assert type(slab) is np.ndarray
    assert peak < 100_000
    assert pages() - before < 8_000  # kB; the whole is 8 MB and the kernel reads ahead a little


def pages():
    """Resident memory in kB."""
    with open("/proc/self/statm") as facts:
        return int(facts.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def test_several_processes(root, store, tmp_path):
    alone = Store(tmp_path / "alone").prepare(source(root).cases(), Preparation())
    done = store.prepare(source(root).cases(), Preparation(), workers=2)
    assert done.computed == 4
    for one, other in zip(alone.cases, done.cases, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()


def test_two_at_once(root, store):
    with ThreadPoolExecutor(4) as pool:
        sets = list(pool.map(lambda _: store.prepare(source(root).cases(), Preparation()), range(4)))
    assert len({tuple(c.key for c in done.cases) for done in sets}) == 1
    assert all(np.isfinite(c.image()).all() for c in sets[0].cases)
    assert not list(store.root.rglob("*.tmp-*"))


def test_killed_and_gone_on(tmp_path):
    root = fake.folders(tmp_path / "data", 30, (40, 40, 40))
    code = (
        "from pathlib import Path; from medlight.prepare import *\n"
        f"found = ImageFolders({str(root / 'images')!r}, {str(root / 'labels')!r}).cases()\n"
        f"Store(Path({str(tmp_path / 'store')!r})).prepare(found, Preparation([0.6, 0.6, 0.6]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    written = tmp_path / "store" / "v1"
    while child.poll() is None and len(list(written.rglob("*.safetensors"))) < 3:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    there = len([p for p in written.rglob("*.safetensors") if not p.name.startswith(".")])
    assert 3 <= there < 30
    done = Store(tmp_path / "store").prepare(source(root).cases(), Preparation([0.6, 0.6, 0.6]))
    assert (done.computed, done.reused) == (30 - there, there)
    for case in done.cases[:5]:
        np.testing.assert_array_equal(case.image(), Preparation([0.6, 0.6, 0.6]).prepare(case.case).image)


def test_left_overs_of_killed_processes_go(root, store):
    store.prepare(source(root).cases(), Preparation())
    folder = next(store.root.glob("v1/*"))
    old, new = folder / ".abc.tmp-x.safetensors", folder / ".def.tmp-x.safetensors"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.prepare(source(root).cases(), Preparation())
    assert not old.exists()
    assert new.exists()  # another process may be at it


@pytest.mark.parametrize(("kind", "workers"), [*((kind, 0) for kind in fake.BAD), ("nan", 1)])
def test_bad_cases(root, store, kind, workers):
    file = fake.spoil(root, "case_02", kind)
    found = source(root, label_names={1: "a", 2: "b"}).cases()
    with pytest.raises(CaseError) as caught:
        store.prepare(found, Preparation(), workers=workers)
    assert str(file) in str(caught.value)
    assert caught.value.case_id == "case_02"
    done = store.prepare(found, Preparation(), on_bad_case="skip", workers=workers)
    assert [c.case.id for c in done.cases] == ["case_00", "case_01", "case_03"]
    assert [bad.id for bad in done.bad] == ["case_02"]
    assert done.bad[0].reason == str(caught.value)
    # what has no partner is refused before anything is prepared; an unknown value is a matter of the schema alone
    before = 0 if kind.startswith("no_") else 4 if kind == "value" else 3
    assert (done.computed, done.reused) == (3 - min(before, 3), before)


def test_many_bad_cases_are_counted(root, store):
    for number in (1, 2, 3):
        fake.spoil(root, f"case_{number:02d}", "nan")
    with pytest.raises(CaseError, match=r"case_01.nii.gz: 1 voxels .* \(and 2 more; on_bad_case: skip leaves them out"):
        store.prepare(source(root).cases(), Preparation())


def test_labels_are_found_where_none_are_named(root, store):
    found = store.prepare(source(root).cases(), Preparation())
    assert found.labels == (Label(0, "background"), Label(1, "label 1"), Label(2, "label 2"))
    named = store.prepare(source(root, label_names={1: "a", 2: "b", 5: "rare"}).cases(), Preparation())
    assert [label.name for label in named.labels] == ["background", "a", "b", "rare"]
    none = ImageFolders(str(root / "images"), unlabelled=True).cases()
    done = store.prepare(none, Preparation())
    assert done.labels == ()
    assert not done.cases[0].has_label
    with pytest.raises(MedlightError, match="has no label"):
        done.cases[0].label()


def test_cases_are_counted_by_what_their_label_maps_hold(tmp_path, store):
    for number, values in enumerate([(1, 2), (1,), (1, 77), ()]):
        label = np.zeros((1, 8, 8, 8), np.uint8)
        for place, value in enumerate(values):
            label[0, 2 * place] = value
        write_nifti(Volume(np.ones((1, 8, 8, 8), np.float32), np.eye(4)), tmp_path / f"images/{number}.nii.gz")
        write_nifti(Volume(label, np.eye(4)), tmp_path / f"labels/{number}.nii.gz")
    listed = ImageFolders(str(tmp_path / "images"), str(tmp_path / "labels")).cases()
    bare = [Case("bare", {"image": tmp_path / "images/0.nii.gz"})]
    prepared = store.prepare(listed, Preparation()).cases + store.prepare(bare, Preparation()).cases
    assert cases_with(prepared) == {0: 1, 1: 3, 2: 1, 77: 1}


def test_two_cases_with_one_id_and_absent_files(root, store):
    case = source(root).cases().cases[0]
    with pytest.raises(CaseError, match="2 cases have the id 'case_00'"):
        store.prepare([case, case], Preparation())
    gone = Case("gone", {"image": root / "images" / "gone.nii.gz"})
    done = store.prepare([case, gone], Preparation(), on_bad_case="skip")
    assert [c.case.id for c in done.cases] == ["case_00"]
    assert "gone.nii.gz: no such file" in done.bad[0].reason


def test_one_file_for_two_cases_is_prepared_once(root, store):
    case = source(root).cases().cases[0]
    twin = Case("twin", case.images, case.label)
    done = store.prepare([case, twin], Preparation())
    assert (done.computed, done.reused) == (1, 1)
    assert done.cases[0].path == done.cases[1].path
    assert done.cases[1].case.id == "twin"


@pytest.mark.parametrize("content", [b"", b"\0" * 4000, None])
def test_a_damaged_file_is_made_anew(root, store, content):
    done = store.prepare(source(root).cases(), Preparation())
    path = done.cases[0].path
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-100] if content is None else content)
    with pytest.raises(MedlightError, match=rf"{path.name}: not a whole prepared case .* remove it"):
        open_prepared(done.cases[0].case, path, "")
    again = store.prepare(source(root).cases(), Preparation())
    assert (again.computed, again.reused) == (1, 3)
    assert path.read_bytes() == whole


def test_a_name_that_is_no_utf8(root, store):
    name = os.fsdecode(b"M\xfcller")
    for folder in ("images", "labels"):
        (root / folder / "case_00.nii.gz").rename(root / folder / f"{name}.nii.gz")
    for computed in (4, 0):
        done = store.prepare(source(root).cases(), Preparation())
        assert (done.computed, len(done.bad)) == (computed, 0)
        assert name in [case.case.id for case in done.cases]


def test_digests_are_remembered(root, store, monkeypatch):
    for path in root.rglob("*.nii.gz"):
        os.utime(path, (1e9, 1e9))
    store.prepare(source(root).cases(), Preparation())

    def never(_path):
        raise AssertionError("read again")

    monkeypatch.setattr("medlight.prepare.digests._sha256", never)
    assert store.prepare(source(root).cases(), Preparation()).computed == 0
    os.utime(root / "images" / "case_00.nii.gz", (1e9 + 1, 1e9 + 1))
    with pytest.raises(AssertionError, match="read again"):
        store.prepare(source(root).cases(), Preparation())


def test_no_name_is_written(root, store):
    store.prepare(source(root).cases(), Preparation())
    for path in store.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"case_0" not in content
            assert b"images" not in content
            assert "case_0" not in path.name


def test_medmnist_opens_its_file_once(tmp_path, store, monkeypatch):
    path = fake.medmnist(tmp_path / "x.npz", (40, 10, 10))
    opened = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda file, **more: (opened.append(file), load(file, **more))[1])
    done = store.prepare(MedMNIST(str(path)).cases(), Preparation())
    assert done.computed == 60
    assert done.cases[0].shape == (28, 28, 1)
    assert len(opened) <= 6  # three arrays of targets, three of images
    pixels = load(path)["val_images"][3]
    np.testing.assert_array_equal(done.cases[43].image()[0, ::-1, ::-1, 0].T, pixels)


def test_an_unforeseen_error_names_the_case(root, store, monkeypatch):
    def broken(*_args):
        raise MemoryError("no room")

    monkeypatch.setattr(store_module, "write_prepared", broken)
    with pytest.raises(MedlightError, match=r"case_00\.nii\.gz: MemoryError: no room"):
        store.prepare(source(root).cases(), Preparation())


def test_facts_are_plain_json(root, store):
    done = store.prepare(source(root).cases(), Preparation()).cases[0]
    json.dumps(done.stats)
    assert all(type(v) is int for v in done.values)


def test_real_hippocampi(data_root, store):
    folder = data_root / "hippocampus"
    found = ImageFolders(str(folder / "images"), str(folder / "labels")).cases()
    start = time.perf_counter()
    first = store.prepare(found, Preparation())
    middle = time.perf_counter()
    again = store.prepare(found, Preparation())
    assert first.computed == 208
    assert again.computed == 0
    assert middle - start < 20
    assert time.perf_counter() - middle < 1
    assert [label.value for label in first.labels] == [0, 1, 2]
