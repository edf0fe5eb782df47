"""``medlight data check``, as a person and as a program see it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medlight.cli.main import main
from tests.data import fake_dicom as fake
from tests.data.fake_dicom import Grid

KEYS = {"id", "series_uid", "modality", "files", "shape", "channels", "spacing_mm", "orientation", "status", "detail"}


def check(*arguments) -> int:
    return main(["data", "check", *map(str, arguments)])


def rows(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_a_good_tree_exits_with_0(tmp_path, capsys):
    fake.write(fake.series(), tmp_path / "a")
    fake.write(fake.report(), tmp_path / "a")
    (tmp_path / "notes.txt").write_text("hello")
    assert check(tmp_path) == 0
    said = capsys.readouterr()
    head, *lines = rows(said.out)
    assert head == ["case", "modality", "files", "shape", "spacing", "orientation", "verdict", "detail", "where"]
    (volume,) = [line for line in lines if line[1] == "CT"]
    assert volume[1:] == ["CT", "6", "12x10x6", "0.75x1.5x2.5", "LPS", "ok", "", f"{tmp_path / 'a'}"]
    assert said.err == "2 ok; 1 other files passed over\n"


def test_anything_else_exits_with_1_and_json_says_all(tmp_path, capsys):
    fake.write(fake.series(series="a"), tmp_path / "a")
    fake.write(fake.without(fake.series(Grid(shape=(10, 12, 9)), series="b"), 4), tmp_path / "b")
    assert check(tmp_path, "--json", tmp_path / "out" / "verdicts.json") == 1
    capsys.readouterr()
    told = json.loads((tmp_path / "out" / "verdicts.json").read_text())
    assert all(set(entry) == KEYS for entry in told)
    assert [entry["status"] for entry in told] == ["ok", "gap"]
    assert told[1]["detail"] == "5 mm between slices 4 and 5, 2.5 mm between the others: 1 slice is missing"
    assert check(tmp_path, "--json", "-") == 1
    assert json.loads(capsys.readouterr().out) == told


def test_nothing_found_exits_with_1_and_a_wrong_call_with_2(tmp_path, capsys):
    assert check(tmp_path) == 1
    assert "nothing found" in capsys.readouterr().err
    assert check(tmp_path / "absent") == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert check(tmp_path, "--workers", 0) == 2
    assert "at least 1" in capsys.readouterr().err
    assert check(tmp_path, "--on", "gap=mend") == 2


@pytest.mark.parametrize(
    ("datasets", "mend", "code"),
    [
        (fake.without(fake.series(Grid(shape=(10, 12, 9))), 4), "gap=interpolate", 0),
        (fake.without(fake.series(Grid(shape=(10, 12, 9))), 4), "gap=split", 0),
        (fake.without(fake.series(Grid(shape=(10, 12, 9))), 4), "tilt=deskew", 1),
        (fake.uneven(), "uneven=resample", 0),
        (fake.tilted(), "tilt=deskew", 0),
        (fake.doubled(fake.series()), "duplicate=first", 0),
        (fake.localizer(), "duplicate=first", 1),
    ],
)
def test_a_mend_makes_what_it_mends_ok(tmp_path, capsys, datasets, mend, code):
    fake.write(datasets, tmp_path)
    assert check(tmp_path) == 1
    assert check(tmp_path, "--on", mend) == code
    assert (mend in capsys.readouterr().out) == (code == 0)


def test_it_says_where_a_series_lies_and_what_mends_it(tmp_path, capsys, monkeypatch):
    """For a person only: file names may be patients'."""
    monkeypatch.chdir(tmp_path)
    fake.write(fake.without(fake.series(Grid(shape=(10, 12, 9))), 4), tmp_path / "in" / "a")
    fake.write(fake.radiograph(), tmp_path / "one")
    fake.zipped(tmp_path / "in", tmp_path / "in.zip")
    assert check(tmp_path / "in", tmp_path / "in.zip", "--json", "v.json") == 1
    gap, copy = rows(capsys.readouterr().out)[1:]
    assert gap[7].endswith("1 slice is missing; --on gap=interpolate mends it")
    assert (gap[8], copy[8]) == ("in/a", "in.zip!a")
    assert "in" not in [entry.get("where") for entry in json.loads((tmp_path / "v.json").read_text())]
    assert check(tmp_path / "one") == 0
    (alone,) = rows(capsys.readouterr().out)[1:]
    assert Path(alone[8]).is_file()


def test_where_a_series_lies_that_is_spread(tmp_path, monkeypatch):
    from medlight.cli.check import where
    from medlight.scans.dicom.frames import Frame, Place, Stack

    monkeypatch.chdir(tmp_path)

    def lies(*places: tuple[str, str]) -> str:
        return where(Stack("", "CT", tuple(Frame(Place(Path(p), member), "", (1, 1)) for p, member in places)))

    assert lies(("a/b/1", ""), (f"{tmp_path}/a/c/2", "")) == "a"
    assert lies(("1", ""), ("2", "")) == "."
    assert lies(("a.zip", "x/1"), ("a.zip", "/x/2")) == "a.zip!x"
    assert lies(("a.zip", "1"), ("a.zip", "x/2")) == "a.zip"
    assert lies(("a.zip", "x/1")) == "a.zip!x/1"
    assert lies(("a/one.dcm", "")) == "a/one.dcm"


def test_a_mended_row_says_what_will_be_read(tmp_path, capsys):
    from medlight.scans import read
    from medlight.scans.dicom.mend import Mends

    made = {
        "gap=interpolate": fake.without(fake.series(Grid(shape=(10, 12, 9))), 4),
        "uneven=resample": fake.uneven(),
        "tilt=deskew": fake.tilted(),
        "duplicate=first": fake.doubled(fake.series()),
    }
    for mend, datasets in made.items():
        folder = fake.write(datasets, tmp_path / mend)
        capsys.readouterr()
        assert check(tmp_path / mend, "--on", mend, "--json", tmp_path / "v.json") == 0, folder
        (row,) = rows(capsys.readouterr().out)[1:]
        (entry,) = json.loads((tmp_path / "v.json").read_text())
        volume = read(tmp_path / mend, Mends.parse([mend]))
        assert entry["shape"] == list(volume.shape)
        assert np.allclose(entry["spacing_mm"], volume.spacing, atol=1e-5)
        assert (row[6], row[7].partition(": ")[0]) == ("ok", mend)


def test_a_split_series_is_a_row_for_each_piece(tmp_path, capsys):
    fake.write(fake.without(fake.series(Grid(shape=(10, 12, 9))), 1), tmp_path / "a")
    assert check(tmp_path, "--on", "gap=split") == 1
    first, second = rows(capsys.readouterr().out)[1:]
    assert (first[3], first[6]) == ("12x10x1", "not-a-volume")
    assert (second[3], second[6]) == ("12x10x7", "ok")
    assert second[7] == "gap=split: piece 2 of 2: slices 2 to 8"


def test_a_mend_that_leaves_a_fault_does_not_make_it_ok(tmp_path, capsys):
    tilted = fake.without(fake.tilted(grid=Grid(shape=(10, 12, 9))), 4)
    fake.write(tilted, tmp_path / "a")
    assert check(tmp_path, "--on", "gap=interpolate") == 1
    (row,) = rows(capsys.readouterr().out)[1:]
    assert row[6] != "ok"
    assert "--on tilt=deskew mends it" in row[7]
    assert check(tmp_path, "--on", "gap=interpolate", "--on", "tilt=deskew") == 0


def test_the_shape_and_spacing_of_real_series_once_mended(data_root, capsys):
    failing = data_root / "dicom" / "failing"
    assert check(failing / "sliceincrement" / "001", "--on", "gap=interpolate") == 0
    (row,) = rows(capsys.readouterr().out)[1:]
    assert row[3] == "512x512x5"
    assert row[4].endswith("x5")
    assert check(failing / "gantrytilting", "--on", "tilt=deskew") == 0
    assert ["512x521x4", "4.851"] in [[row[3], row[4].split("x")[2]] for row in rows(capsys.readouterr().out)[1:]]


def test_other_formats_are_rows_too(tmp_path, capsys):
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.diag([-1, -2, 3, 1])), tmp_path / "Zyzzyva.nii.gz")
    assert check(tmp_path, "--json", tmp_path / "v.json") == 0
    (line,) = rows(capsys.readouterr().out)[1:]
    assert line[3:7] == ["3x4x5", "1x2x3", "LPS", "ok"]
    assert line[8].endswith("Zyzzyva.nii.gz")
    text = (tmp_path / "v.json").read_text()
    assert "Zyzzyva" not in text
    assert set(json.loads(text)[0]) == KEYS
    bad = np.zeros((3, 4, 5), np.float32)
    bad[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(bad, np.eye(4)), tmp_path / "nan.nii")
    assert check(tmp_path) == 0
    assert check(tmp_path, "--deep", "--json", tmp_path / "v.json") == 1
    assert sorted(entry["status"] for entry in json.loads((tmp_path / "v.json").read_text())) == ["nan", "ok"]


def test_deep_finds_what_headers_do_not(tmp_path, capsys):
    fake.write(fake.series(), tmp_path / "a")
    assert check(tmp_path, "--deep") == 0
    import pydicom

    made = pydicom.dcmread(Path(pydicom.__file__).parent / "data" / "test_files" / "JPEG2000.dcm")
    made.Modality = "DX"
    data = fake.save(made, tmp_path / "cut.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[:-90])
    assert check(tmp_path) == 0
    assert check(tmp_path, "--deep") == 1
    assert "cut.dcm" in capsys.readouterr().out


def test_names_of_any_bytes_and_of_control_characters_are_shown(tmp_path, capsys):
    for name in (b"\xff\xfe.dcm", b"a\nb\x1b[31m.dcm"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(b"")
    assert check(tmp_path, "--json", tmp_path / "v.json") == 1
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert len(rows(text)) == 3
    text.encode()
    assert len(json.loads((tmp_path / "v.json").read_text())) == 2


def test_a_person_sees_a_table(tmp_path):
    """In a terminal: columns, colours, and lines that fit."""
    fake.write(fake.tilted(), tmp_path / "a")
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "medlight", "data", "check", str(tmp_path)]
    env = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    said = subprocess.run(command, stdout=terminal, stderr=subprocess.DEVNULL, env=env, check=False)
    os.close(terminal)
    text = os.read(screen, 1 << 16).decode()
    assert said.returncode == 1
    assert "15.0 degrees" in text
    assert "\x1b[31mtilt" in text


def test_help_needs_nothing_heavy():
    code = "import sys; from medlight.cli.main import main\n"
    code += "try: main(['data', 'check', '--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('pydicom', 'torch', 'numpy', 'rich', 'nibabel') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "[]"
    assert "medlight data check scans" in said.stdout
