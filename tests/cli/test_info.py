"""``medlight data info``: facts and a picture of one scan."""

from __future__ import annotations

import argparse
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from medlight.cli import info
from medlight.cli.main import main
from medlight.errors import MedlightError, UsageError
from medlight.scans import Channel, Volume, write_nifti
from tests.data import fake_dicom as fake


def run(capsys, *arguments):
    parser = argparse.ArgumentParser()
    info.add_arguments(parser)
    parser.add_argument("--json")
    assert info.run(parser.parse_args([*map(str, arguments), "--json", "found.json"])) == 0
    said = capsys.readouterr()
    with open("found.json") as file:
        return said.out + said.err, json.load(file)


def test_a_series(workdir, capsys):
    fake.write(fake.series(WindowCenter=100, WindowWidth=200, RescaleType="HU", RescaleIntercept=-5, RescaleSlope=1),
               workdir / "in")  # fmt: skip
    said, found = run(capsys, "in", "--png", "slices.png")
    assert found["shape"] == [12, 10, 6]
    assert found["spacing_mm"] == [0.75, 1.5, 2.5]
    assert found["minimum"] == -5
    for text in ("12 x 10 x 6", "0.75 x 1.5 x 2.5 mm", "-5 to", "HU", "100/200"):
        assert text in said
    for word in fake.IDENTITY.values():
        assert word not in said + json.dumps(found)
    picture = np.asarray(Image.open("slices.png"))
    assert picture.shape[2] == 3
    assert picture.max() == 255


def test_windows(workdir, capsys):
    array = np.linspace(-1000, 1000, 20**3).reshape(1, 20, 20, 20).astype(np.float32)
    write_nifti(Volume(array, np.eye(4)), workdir / "a.nii.gz")
    pictures = {}
    for name in ("lung", "bone", "0/100"):
        run(capsys, "a.nii.gz", "--png", "a.png", "--window", name)
        pictures[name] = np.asarray(Image.open("a.png")).mean()
    assert pictures["lung"] > pictures["0/100"] > pictures["bone"]
    with pytest.raises(UsageError, match="no window"):
        run(capsys, "a.nii.gz", "--window", "lnug")
    with pytest.raises(UsageError, match="png"):
        run(capsys, "a.nii.gz", "--png", "a.jpg")


def test_a_window_of_the_file_decides_what_is_shown():
    array = np.linspace(0, 1000, 20**3).reshape(1, 20, 20, 20).astype(np.float32)
    narrow = {"windows": [{"centre": 900.0, "width": 0.5, "function": "LINEAR"}]}
    plain = info.picture(Volume(array, np.eye(4)))
    assert info.picture(Volume(array, np.eye(4), meta=narrow)).mean() < plain.mean()


def test_channels_and_odd_values(workdir, capsys):
    array = np.ones((8, 5, 6, 7), np.float32)
    array[:, 0, 0, 0] = np.nan
    channels = tuple(Channel(b_value=float(100 * n), frame_time_ms=2.0 * n) for n in range(8))
    text = dict(info.rows(info.facts(Volume(array, np.eye(4), channels))))
    assert "frames at 0, 2 ... 14 ms" in text["channels"]
    assert "b-values 0, 100 ... 700 s/mm2" in text["channels"]
    assert "8 are no numbers" in text["values"]
    nothing = np.full((1, 2, 2, 2), np.nan, np.float32)
    assert dict(info.rows(info.facts(Volume(nothing, np.eye(4)))))["values"].startswith("- to -")
    assert info.picture(Volume(nothing, np.eye(4))).shape[2] == 3


def test_colour_is_shown_by_its_mean():
    channels = tuple(Channel(name) for name in ("red", "green", "blue"))
    array = np.stack([np.full((9, 8, 1), n, np.uint8) for n in (0, 30, 60)])
    found = info.facts(Volume(array, np.eye(4), channels))
    assert found["colour"]
    assert dict(info.rows(found))["channels"] == "3 (red, green, blue)"
    assert info.picture(Volume(array, np.eye(4), channels)).shape[2] == 3


def test_mends_are_noted_and_faults_named(workdir, capsys):
    fake.write(fake.without(fake.series(), 2), workdir / "in")
    with pytest.raises(MedlightError, match="gap"):
        run(capsys, "in")
    said, found = run(capsys, "in", "--on", "gap=interpolate")
    assert found["shape"][2] == 6
    assert "mended" in said


def test_what_can_not_be_read_still_says_what_its_headers_do(workdir, capsys):
    fake.write(fake.series()[2], workdir / "one")
    assert main(["data", "info", "one", "--json", "found.json"]) == 1
    said = capsys.readouterr()
    told = dict(line.split(maxsplit=1) for line in said.out.splitlines())
    assert told["voxels"] == "12 x 10 x 1"
    assert told["verdict"] == "not-a-volume"
    assert "series number 1\n" in said.out
    assert "not-a-volume" in said.err
    assert len(said.err.splitlines()) == 1
    for word in fake.IDENTITY.values():
        assert word not in said.out + (workdir / "found.json").read_text()
    assert json.loads((workdir / "found.json").read_text())["status"] == "not-a-volume"
    cut = fake.radiograph()
    cut.PixelData = cut.PixelData[:-90]
    fake.save(cut, workdir / "cut.dcm")
    assert main(["data", "info", "cut.dcm"]) == 1
    assert "verdict      unreadable\n" in capsys.readouterr().out
    fake.write(fake.without(fake.series(), 2), workdir / "gap")
    assert main(["data", "info", "gap"]) == 1
    said = capsys.readouterr()
    assert "12 x 10 x 5" in said.out
    assert "--on gap=interpolate mends it" in said.err
    assert main(["data", "info", "absent.nii"]) == 1
    assert capsys.readouterr().out == ""


def test_several_volumes_are_listed_as_before(workdir, capsys):
    for name in "ab":
        fake.write(fake.series(series=name), workdir / "in" / name)
    assert main(["data", "info", "in"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "holds 2 volumes" in said.err


def test_figures_are_told_as_they_are_meant(workdir, capsys):
    fake.write(fake.radiograph(PhotometricInterpretation="MONOCHROME1", SeriesNumber=12345678), workdir / "in")
    said, _ = run(capsys, "in")
    assert "series number 12345678\n" in said
    assert "turned       bright and dark, so that more is brighter (MONOCHROME1)\n" in said
    assert "True" not in said


def test_a_place_where_no_picture_can_be_written_is_one_line(workdir, capsys):
    fake.write(fake.series(), workdir / "in")
    (workdir / "file").write_text("")
    assert main(["data", "info", "in", "--png", "file/a.png"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medlight data: --png file/a.png: can't be written (")


def test_fill_values_do_not_darken_the_picture():
    array = np.linspace(0, 100, 20**3, dtype=np.float32).reshape(1, 20, 20, 20)
    plain = info.picture(Volume(array, np.eye(4)))
    filled = array.copy()
    filled[:, :3] = -3.4e38
    filled[:, 17:] = 3.4e38
    assert info.picture(Volume(filled, np.eye(4))).mean() > plain.mean() / 2


def test_it_is_drawn_in_a_terminal():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="truecolor", width=40)
    info.draw(np.tile(np.arange(0, 200, 2, dtype=np.uint8)[:, None, None], (1, 100, 3)), console)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 20
    assert all(line.count("▀") == 40 for line in lines)
    assert "38;2;2;2;2;48;2;" in lines[0]
