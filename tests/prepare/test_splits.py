"""Splits: whole subjects, the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlight.errors import UsageError
from medlight.prepare import Case, GivenSplit, KFold, RandomSplit, SplitFile, Splitter


def cases(count, subjects=0, split=None):
    return [
        Case(f"c{n:03d}", {"image": Path("x.nii")}, subject=f"s{n % subjects}" if subjects else None, split=split)
        for n in range(count)
    ]


@given(st.integers(2, 60), st.integers(0, 8), st.floats(0.01, 0.5), st.floats(0, 0.4), st.integers(0, 99))
def test_random_splits_keep_subjects_whole(count, subjects, val, test, seed):
    listed = cases(count, subjects)
    try:
        split = RandomSplit(val, test, seed).assign(listed)
    except UsageError as error:
        assert "leaves no case for training" in str(error)  # noqa: PT017
        return
    parts = [set(split.train), set(split.val), set(split.test)]
    assert sum(map(len, parts)) == count
    assert set().union(*parts) == {case.id for case in listed}
    assert split.val
    assert bool(split.test) == (test > 0)
    by_id = {case.id: case.subject or case.id for case in listed}
    owners = [{by_id[name] for name in part} for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners))
    assert RandomSplit(val, test, seed).assign(listed[::-1]).to_dict().keys() == split.to_dict().keys()
    assert set(RandomSplit(val, test, seed).assign(listed[::-1]).val) == set(split.val)


def test_shares_and_seeds():
    split = RandomSplit(0.2, 0.1, 3).assign(cases(100))
    assert [len(split.train), len(split.val), len(split.test)] == [70, 20, 10]
    assert split.val != RandomSplit(0.2, 0.1, 4).assign(cases(100)).val
    # never changes: committed results depend on it
    assert RandomSplit(0.3, seed=0).assign(cases(10)).val == ("c002", "c004", "c006")


@given(st.integers(2, 6), st.integers(0, 12), st.floats(0, 0.3), st.integers(0, 9))
def test_folds_cover_each_case_once(folds, extra, test, seed):
    listed = cases(4 * folds + extra)
    splits = [KFold(folds, fold, seed, test).assign(listed) for fold in range(folds)]
    held = [name for split in splits for name in split.val]
    assert len(held) == len(set(held))
    assert len({split.test for split in splits}) == 1
    assert set(held) | set(splits[0].test) == {case.id for case in listed}
    sizes = [len(split.val) for split in splits]
    assert max(sizes) - min(sizes) <= 1


def test_folds_keep_subjects_whole():
    listed = cases(40, 7)
    subject = {case.id: case.subject for case in listed}
    for fold in range(3):
        split = KFold(3, fold).assign(listed)
        assert not {subject[n] for n in split.train} & {subject[n] for n in split.val}


def test_given_splits():
    listed = [*cases(2, split="train"), Case("v", {}, split="val"), Case("t", {}, split="test")]
    split = GivenSplit().assign(listed)
    assert split.to_dict() == {"train": ["c000", "c001"], "val": ["v"], "test": ["t"]}
    with pytest.raises(UsageError, match="x: has no split"):
        GivenSplit().assign([*listed, Case("x", {})])
    torn = [Case("a", {}, subject="s", split="train"), Case("b", {}, subject="s", split="val")]
    with pytest.raises(UsageError, match="tears a subject apart: a is in train, b in val"):
        GivenSplit().assign(torn)
    with pytest.raises(UsageError, match="no case for training"):
        GivenSplit().assign([Case("v", {}, split="val")])


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_committed_splits(tmp_path, suffix):
    file = tmp_path / f"split{suffix}"
    file.write_text(json.dumps({"train": ["c000", "c001"], "val": ["c002"]}))
    split = SplitFile(str(file)).assign(cases(5))
    assert split.to_dict() == {"train": ["c000", "c001"], "val": ["c002"], "test": []}
    file.write_text(json.dumps(RandomSplit().assign(cases(9)).to_dict()))
    assert SplitFile(str(file)).assign(cases(9)) == RandomSplit().assign(cases(9))


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ({"train": ["c000", "c0001"]}, r"train: no case has the id 'c0001' \(did you mean 'c00"),
        ({"train": ["c000"], "val": ["c000"]}, "lists 'c000' twice, in train and val"),
        ({"train": ["c000"], "valid": ["c001"]}, "valid: expected lists .*did you mean 'val'"),
        ({"train": "c000"}, "expected lists"),
        ([], "expected lists"),
    ],
)
def test_wrong_split_files(tmp_path, listed, said):
    (tmp_path / "split.json").write_text(json.dumps(listed))
    with pytest.raises(UsageError, match=said):
        SplitFile(str(tmp_path / "split.json")).assign(cases(5))


def test_cases_left_out_are_no_unknown_ids(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"train": ["c000", "broken"], "val": ["c001"]}))
    split = SplitFile(str(tmp_path / "split.json")).assign(cases(2), ["broken"])
    assert split.train == ("c000",)


@pytest.mark.parametrize(
    "wrong", [lambda: RandomSplit(0.8, 0.3), lambda: RandomSplit(-0.1), lambda: KFold(1), lambda: KFold(5, 5)]
)
def test_wrong_arguments(wrong):
    with pytest.raises(UsageError):
        wrong()


def test_too_few_for_the_folds():
    with pytest.raises(UsageError, match="3 subjects are too few for 5 folds"):
        KFold(5).assign(cases(9, 3))
    assert isinstance(KFold(), Splitter)
