"""A drop folder: what comes to rest is predicted once, whatever is restarted or comes late."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medlight.cli.main import main
from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime.studies import Asked
from medlight.deploy.runtime.watch import QUIET_S, Drop
from medlight.scans import Volume, write_nifti
from tests.data import fake_dicom
from tests.deploy.runtime.conftest import GRID


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("medlight.deploy.runtime.watch.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def drop(tmp_path: Path) -> Drop:
    (tmp_path / "in").mkdir()
    return Drop(tmp_path / "in", Asked(tmp_path / "out"), quiet=5.0)


def write(series: str, folder: Path, slices: range = range(12), channel: int = 0) -> None:
    planes = fake_dicom.series(GRID, series=series, channel=channel)
    for number in slices:
        fake_dicom.save(planes[number], folder / f"{series} {number}.dcm")


def settled(drop: Drop) -> list[str]:
    return [f"{item.output.suffix} {len(item.source.frames)}" for item in drop.settled()]  # type: ignore[union-attr]


def test_a_series_is_waited_for_and_given_once(drop: Drop, clock: Clock) -> None:
    assert settled(drop) == []
    write("a", drop.folder, range(6))
    assert settled(drop) == []
    clock.now += 4
    write("a", drop.folder, range(6, 12))
    assert settled(drop) == []
    clock.now += 4  # the first files are at rest, the last are not
    assert settled(drop) == []
    clock.now += 2
    assert settled(drop) == [".dcm 12"]
    clock.now += 60
    assert settled(drop) == []


def test_series_that_come_together_into_one_folder(drop: Drop, clock: Clock) -> None:
    write("a", drop.folder)
    assert settled(drop) == []
    clock.now += 3
    write("b", drop.folder, channel=1)
    assert settled(drop) == []
    clock.now += 3
    assert settled(drop) == [".dcm 12"]  # a, while b is still young
    clock.now += 3
    assert settled(drop) == [".dcm 12"]


def test_slices_that_come_late_make_the_series_anew(drop: Drop, clock: Clock) -> None:
    write("a", drop.folder / "deep", range(10))
    assert settled(drop) == []
    clock.now += 6
    assert settled(drop) == [".dcm 10"]
    write("a", drop.folder / "deep", range(10, 12))
    assert settled(drop) == []
    clock.now += 6
    assert settled(drop) == [".dcm 12"]


def test_what_is_no_scan_or_hidden_or_half_written(drop: Drop, clock: Clock) -> None:
    (drop.folder / "notes.txt").write_text("hello")
    write("a", drop.folder / ".partial")
    fake_dicom.save(fake_dicom.instance(None, "SR"), drop.folder / "report.dcm")
    write_nifti(Volume(np.zeros((1, 9, 9, 9), np.int16), np.eye(4)), drop.folder / "x" / "scan.nii.gz")
    assert list(drop.settled()) == []
    clock.now += 6
    (item,) = drop.settled()
    assert item.output.name == "x_scan.nii.gz"
    (drop.folder / ".partial").rename(drop.folder / "whole")
    assert settled(drop) == []
    clock.now += 6
    assert settled(drop) == [".dcm 12"]


def test_wrong_calls(ct_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for words, said in (
        ((tmp_path / "gone", tmp_path / "out"), "no such folder to watch"),
        ((tmp_path / "in", tmp_path / "in" / "out"), "is never written to"),
        ((tmp_path / "in", tmp_path / "out.nii.gz"), "takes a folder for OUT"),
    ):
        assert main(["predict", str(ct_bundle.root), *map(str, words), "--watch"]) == 2
        assert said in capsys.readouterr().err


def wait_for(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 90
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.2)


def told(out: Path, key: str) -> int:
    summary = out / "summary.json"
    return len(json.loads(summary.read_text())[key]) if summary.is_file() else 0


def test_a_real_process(ct_bundle: Bundle, tmp_path: Path) -> None:
    """Predicts, ends cleanly, and does nothing twice when it is started again."""
    inside, out = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    code = "import sys; from medlight.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "predict", ct_bundle.root, "--watch", inside, out, "--threads", "1"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
        )

    process = start()
    write("a", inside / "Doe^Jane")
    fake_dicom.write(fake_dicom.series(GRID, series="mr", modality="MR"), inside / "MR")
    wait_for(lambda: told(out, "cases") == told(out, "failed") == 1, process)
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "ended: 1 predicted, 1 not" in said
    assert "is MR, but the bundle was trained on CT" in error
    assert not list(out.glob(".*"))
    (seg,) = out.glob("case-*.dcm")
    before = seg.stat().st_mtime_ns
    process = start()
    shutil.rmtree(inside / "MR")
    write("b", inside, channel=1)
    wait_for(lambda: told(out, "cases") == 2, process)
    assert len(list(out.glob("case-*.dcm"))) == 2
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "ended: 1 predicted, 0 not" in said
    assert seg.stat().st_mtime_ns == before
    assert QUIET_S >= 1
