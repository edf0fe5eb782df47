"""A drop folder: what comes to rest is predicted once, whatever is restarted or comes late."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medlight.cli.main import main
from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime.journal import Item
from medlight.deploy.runtime.studies import Asked
from medlight.deploy.runtime.watch import Drop
from medlight.scans import Volume, write_nifti
from medlight.scans.dicom.survey import Survey
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


def volume(file: Path, seed: int) -> Path:
    """A scan of another content than others."""
    array = np.random.default_rng(seed).integers(0, 900, (1, 20, 22, 12)).astype(np.int16)
    write_nifti(Volume(array, np.diag([1.0, 1.0, 2.5, 1.0])), file)
    return file


@pytest.fixture
def watched(
    ct_bundle: Bundle, drop: Drop, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Runs the command on what lies in the drop folder; then it ends. between: called after each scan."""

    def run(between: Callable[[Item], None] = lambda item: None, *more: str) -> int:
        def items(self: Drop) -> Iterator[Item]:
            list(self.settled())
            clock.now += 60
            for item in self.settled():
                yield item
                between(item)

        monkeypatch.setattr(Drop, "items", items)
        words = ["predict", str(ct_bundle.root), str(drop.folder), str(tmp_path / "out"), "--watch", "--threads", "1"]
        return main([*words, *more])

    return run


def test_files_that_go_away_while_another_scan_runs(
    drop: Drop, watched: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("Doe^Jane", "Poe^Edgar", "Roe^Richard")):
        write(name, drop.folder / name, channel=number)
    volume(drop.folder / "a.nii.gz", 1)
    volume(drop.folder / "b.nii.gz", 2)

    def clean(_: Item) -> None:
        shutil.rmtree(drop.folder / "Poe^Edgar", ignore_errors=True)
        (drop.folder / "a.nii.gz").unlink(missing_ok=True)

    assert watched(clean) == 0
    said = capsys.readouterr()
    failed = [line for line in said.err.splitlines() if line.startswith("not predicted: ")]
    assert [Path(line.split(":")[1].strip()).name for line in failed] == ["Poe^Edgar 0.dcm", "a.nii.gz"]
    assert "can't be read (No such file or directory)" in failed[0]
    assert said.out.count(": predicted") == 3
    kept = (tmp_path / "out" / "summary.json").read_text()
    assert len(json.loads(kept)["failed"]) == 2
    assert not any(secret in kept for secret in ("Doe^", "Poe^", "Roe^"))


def test_files_that_go_away_while_they_are_looked_at(drop: Drop, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    from medlight.deploy.runtime import watch

    write("a", drop.folder)
    gone = volume(drop.folder / "gone.nii.gz", 1)
    real = watch.survey

    def late(files: list[Path]) -> Survey:
        gone.unlink(missing_ok=True)
        return real(files)

    monkeypatch.setattr(watch, "survey", late)
    assert settled(drop) == []
    clock.now += 6
    assert settled(drop) == []  # not even looked at: one of the files is not there
    assert settled(drop) == [".dcm 12"]


@pytest.mark.parametrize(
    ("first", "second", "output"),
    [
        ("scan.nii.gz", "scan.nii", "scan.nii.gz"),
        ("scan.nii.gz", "scan.nrrd", "scan.nii.gz"),
        ("a/b.nii.gz", "a_b.nii.gz", "a_b.nii.gz"),
    ],
)
def test_no_result_replaces_another_files(
    drop: Drop,
    watched: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    first: str,
    second: str,
    output: str,
) -> None:
    """Whatever comes first after a restart, and with whichever options."""
    mine, other, result = drop.folder / first, drop.folder / second, tmp_path / "out" / output
    volume(mine, 1)
    assert watched() == 0
    before = result.read_bytes()
    sitk.WriteImage(sitk.ReadImage(str(volume(tmp_path / "other.nii.gz", 2))), str(other))
    for _ in range(2):
        capsys.readouterr()
        assert watched() == 0
        said = capsys.readouterr().err
        assert said.count("not predicted: ") == 1
        assert f"{other}: {output} is the result of another file; mend: rename this one" in said
        assert result.read_bytes() == before
    assert watched(lambda item: None, "--force") == 0  # all is predicted anew, the other one is not
    said = capsys.readouterr()
    assert said.err.count("is the result of another file") == 1
    assert said.out.count(": predicted") == 1
    assert result.read_bytes() == before
    other.rename(drop.folder / f"renamed{''.join(other.suffixes)}")
    assert watched() == 0
    assert (tmp_path / "out" / "renamed.nii.gz").is_file()
    assert "not predicted" not in capsys.readouterr().err


def test_a_result_without_an_entry_of_its_place_finds_its_file_again(
    drop: Drop, watched: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As earlier versions wrote it, and where the drop folder was moved."""
    mine, journal = volume(drop.folder / "scan.nii.gz", 1), tmp_path / "out" / "predictions.json"
    assert watched() == 0
    for place in ({}, {"place": "elsewhere"}):
        entries = json.loads(journal.read_text())
        del entries["scan"]["place"]
        journal.write_text(json.dumps({"scan": entries["scan"] | place}))
        assert watched() == 0
        volume(drop.folder / "scan.nii", 2)
        capsys.readouterr()
        assert watched() == 0
        assert "scan.nii: scan.nii.gz is the result of another file" in capsys.readouterr().err
        (drop.folder / "scan.nii").unlink()
    volume(mine, 3)  # the same file with another content is predicted anew
    assert watched() == 0
    assert capsys.readouterr().out.count("scan: predicted") == 1


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
