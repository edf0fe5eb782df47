"""Tables of cases."""

from __future__ import annotations

import pytest

from medlight.errors import UsageError
from medlight.prepare import Box, Manifest
from tests.data import fake


@pytest.fixture
def root(tmp_path):
    return fake.folders(tmp_path, 3, (6, 6, 6))


def row(number, **more):
    name = f"case_{number:02d}"
    return {"id": f"p{number}", "image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz", **more}


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_all_columns(root, suffix):
    rows = [
        {
            **row(n, subject=f"s{n}", site="A", split="train", target=n % 2),
            "image:late": f"images/case_{n:02d}.nii.gz",
            "table:age": 60 + n,
            "table:sex": "f",
        }
        for n in range(3)
    ]
    found = Manifest(str(fake.manifest(root / f"list{suffix}", rows)), {1: "liver", 2: "tumour"}).cases()
    assert not found.bad
    case = found.cases[1]
    assert case.id == "p1"
    assert case.images == {"image": root / "images/case_01.nii.gz", "late": root / "images/case_01.nii.gz"}
    assert case.label == root / "labels/case_01.nii.gz"
    assert (case.target, case.subject, case.site, case.split) == (1, "s1", "A", "train")
    assert case.table == {"age": 61.0, "sex": "f"}
    assert found.classes == ("0", "1")
    assert [label.name for label in found.labels] == ["background", "liver", "tumour"]


@pytest.mark.parametrize(
    ("targets", "classes", "several", "first"),
    [
        (["benign", "malignant", "benign"], ("benign", "malignant"), False, 0),
        ([2, 0, 1], ("0", "1", "2"), False, 2),
        (["1;0;1", "0;0;0", "1;1;1"], ("0", "1", "2"), True, (1.0, 0.0, 1.0)),
        (["61.5", "40.25", "70.0"], (), False, (61.5,)),
    ],
)
def test_targets(root, targets, classes, several, first):
    rows = [row(n, target=target) for n, target in enumerate(targets)]
    for entry in rows:
        del entry["label"]
    found = Manifest(str(fake.manifest(root / "list.csv", rows))).cases()
    assert (found.classes, found.multilabel, found.cases[0].target) == (classes, several, first)


def test_boxes(root):
    rows = [row(0, boxes=[{"low": [1, 1, 1], "high": [3, 4, 5], "label": 1}])]
    found = Manifest(str(fake.manifest(root / "list.json", rows))).cases()
    assert found.cases[0].boxes == (Box((1, 1, 1), (3, 4, 5), 1),)
    rows = [row(0, boxes=[{"low": [1, 1, 1]}])]
    found = Manifest(str(fake.manifest(root / "list.json", rows))).cases()
    assert "not written as it should be" in found.bad[0].reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": "images/absent.nii.gz"}, "absent.nii.gz is not there; add the file"),
        ({"label": "labels/absent.nii.gz"}, "absent.nii.gz is not there"),
        ({"label": ""}, "has no label; fill it, set unlabelled: true"),
        ({"image": ""}, "has no image; fill the column"),
        ({"id": ""}, "has no id; give each case its own"),
        ({"split": "trian"}, "did you mean 'train'"),
    ],
)
def test_bad_rows_are_listed(root, change, said):
    file = fake.manifest(root / "list.csv", [row(0), {**row(1), **change}, row(2)])
    found = Manifest(str(file)).cases()
    assert [case.id for case in found.cases] == ["p0", "p2"]
    assert len(found.bad) == 1
    assert f"{file} row 2: " in found.bad[0].reason
    assert said in found.bad[0].reason


def test_two_rows_with_one_id(root):
    found = Manifest(str(fake.manifest(root / "list.csv", [row(0), {**row(1), "id": "p0"}, row(2)]))).cases()
    assert [case.id for case in found.cases] == ["p2"]
    assert "2 cases have the id 'p0'" in found.bad[0].reason


def test_unlabelled(root):
    rows = [row(0), row(1, label="")]
    found = Manifest(str(fake.manifest(root / "list.csv", rows)), unlabelled=True).cases()
    assert [case.label is None for case in found.cases] == [False, True]
    only = fake.manifest(root / "images.csv", [{"id": "a", "image": "images/case_00.nii.gz"}])
    with pytest.raises(UsageError, match="no column label or target"):
        Manifest(str(only)).cases()
    assert len(Manifest(str(only), unlabelled=True).cases().cases) == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "id,imgae\na,b\n", "unknown column 'imgae' .did you mean 'image'"),
        ("x.csv", "id,image\n", "lists no case"),
        ("x.csv", "id,image\na,b,c\n", "more fields"),
        ("x.json", "{", "not valid JSON"),
        ("x.json", '{"a": 1}', "expected a list"),
    ],
)
def test_broken_tables(root, name, text, said):
    (root / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        Manifest(str(root / name)).cases()


def test_tables_in_another_encoding(root):
    (root / "x.csv").write_bytes("id,image\nä,b\n".encode("latin-1"))
    with pytest.raises(UsageError, match="UTF-8"):
        Manifest(str(root / "x.csv")).cases()
