"""The DICOM node, with dcmtk's clients and archive on loopback."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, Verification

from medlight.deploy.runtime import Predictor
from medlight.deploy.serve.sending import Peer
from medlight.deploy.serve.spool import OBJECTS, REASON, RESULT, WHOLE, Spool
from medlight.errors import UsageError
from medlight.scans.dicom_seg import read_seg
from tests.data import fake_dicom
from tests.deploy.serve.served import GRID, archive, dcmtk, echo, free_port, held, node, store, until

pytestmark = dcmtk


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor(bundle, threads=1)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def results(folder: Path, count: int = 1) -> list[pydicom.Dataset]:
    """What the archive has got, once it is whole."""

    def whole() -> list[pydicom.Dataset]:
        files = list(folder.iterdir())
        try:
            return [pydicom.dcmread(file) for file in files] if len(files) == count else []
        except (OSError, pydicom.errors.InvalidDicomError):
            return []

    return until(whole)


def emptied(spool: Path) -> None:
    until(lambda: not held(spool))


def reasons(spool: Path) -> list[str]:
    return [file.read_text() for file in (spool / "failed").glob(f"*/{REASON}")]


def test_a_series_comes_in_and_its_segmentation_goes_out(
    predictor: Predictor, spool: Path, series: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    peer = free_port()
    with archive(tmp_path / "got", peer), node(predictor, spool, peer) as port:
        assert echo(port) == 0
        sent = store(port, series)
        assert sent.returncode == 0, sent.stderr
        (got,) = results(tmp_path / "got")
        emptied(spool)
    first = pydicom.dcmread(next(series.iterdir()))
    assert got.SOPClassUID == fake_dicom.SOP_CLASSES["SEG"]
    assert got.StudyInstanceUID == first.StudyInstanceUID
    assert got.PatientID == first.PatientID
    referenced = got.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == first.SeriesInstanceUID
    assert len(referenced.ReferencedInstanceSequence) == len(list(series.iterdir()))
    assert [s.label for s in read_seg(next((tmp_path / "got").iterdir())).segments] == ["label 1", "label 2"]
    said = capfd.readouterr()
    assert "sent to ARCHIVE@127.0.0.1" in said.err
    assert not any(secret in said.out + said.err for secret in (*fake_dicom.SECRETS, str(first.SeriesInstanceUID)))


@pytest.mark.parametrize(
    ("kind", "words"), [("compressed_jpegls", "-xt"), ("compressed_j2k", "-xv"), ("compressed_rle", "-xr")]
)
def test_compressed_real_series(
    predictor: Predictor, spool: Path, tmp_path: Path, data_root: Path, kind: str, words: str
) -> None:
    folders = [path for path in (data_root / "dicom" / "generic" / kind).rglob("*") if path.is_dir()]
    source = next(path for path in folders or [data_root / "dicom" / "generic" / kind] if any(path.glob("*")))
    peer = free_port()
    with archive(tmp_path / "got", peer), node(predictor, spool, peer, force=True) as port:
        sent = store(port, source, words=(words,))
        assert sent.returncode == 0, sent.stderr
        (got,) = results(tmp_path / "got")
        emptied(spool)
    original = pydicom.dcmread(next(path for path in sorted(source.iterdir()) if path.is_file()))
    assert got.ReferencedSeriesSequence[0].SeriesInstanceUID == original.SeriesInstanceUID


def test_two_series_interleaved_in_one_association(predictor: Predictor, spool: Path, tmp_path: Path) -> None:
    one, two = fake_dicom.series(GRID, series="one"), fake_dicom.series(GRID, series="two")
    mixed = [
        fake_dicom.save(dataset, tmp_path / "mixed" / f"{number:03}")
        for number, dataset in enumerate(dataset for pair in zip(one, two, strict=True) for dataset in pair)
    ]
    peer = free_port()
    with archive(tmp_path / "got", peer), node(predictor, spool, peer) as port:
        sent = subprocess.run(["storescu", "127.0.0.1", str(port), *mixed], capture_output=True, text=True, check=False)
        assert sent.returncode == 0, sent.stderr
        got = results(tmp_path / "got", 2)
        emptied(spool)
    assert {g.ReferencedSeriesSequence[0].SeriesInstanceUID for g in got} == {
        one[0].SeriesInstanceUID,
        two[0].SeriesInstanceUID,
    }
    assert all(len(g.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 12 for g in got)


def test_a_series_may_come_by_many_associations(
    predictor: Predictor, spool: Path, series: Path, tmp_path: Path
) -> None:
    peer = free_port()
    with archive(tmp_path / "got", peer), node(predictor, spool, peer, quiet=2) as port:
        for file in series.iterdir():
            assert store(port, file).returncode == 0
        (got,) = results(tmp_path / "got")
        emptied(spool)
    assert len(got.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 12


def test_a_sender_that_keeps_its_association_open(
    predictor: Predictor, spool: Path, series: Path, tmp_path: Path
) -> None:
    peer = free_port()
    entity = AE()
    entity.add_requested_context(CTImageStorage, pydicom.uid.ExplicitVRLittleEndian)
    with archive(tmp_path / "got", peer), node(predictor, spool, peer) as port:
        association = entity.associate("127.0.0.1", port)
        for file in series.iterdir():
            assert association.send_c_store(file).Status == 0
        results(tmp_path / "got")
        assert association.is_established
        association.release()
        emptied(spool)


def test_what_is_no_image_is_not_taken(predictor: Predictor, spool: Path, series: Path, tmp_path: Path) -> None:
    report = fake_dicom.save(fake_dicom.report(), tmp_path / "report")
    empty = fake_dicom.save(fake_dicom.instance(None, "CT"), tmp_path / "empty")
    cut = fake_dicom.plane(GRID, 0)
    cut.PixelData = cut.PixelData[:-20]
    cut = fake_dicom.save(cut, tmp_path / "cut")
    with node(predictor, spool, free_port()) as port:
        assert store(port, report).returncode != 0
        assert "No presentation context" in store(port, report, words=("-v",)).stderr
        for file in (empty, cut):
            assert "CannotUnderstand" in store(port, file, words=("-v",)).stderr
        time.sleep(1)
        assert held(spool) == []


def test_a_sender_that_dies_half_way_is_waited_for(
    predictor: Predictor, spool: Path, series: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    peer = free_port()
    with archive(tmp_path / "got", peer), node(predictor, spool, peer) as port:
        many = [str(file) for file in series.iterdir()] * 200
        sender = subprocess.Popen(["storescu", "127.0.0.1", str(port), *many], stderr=subprocess.DEVNULL)
        until(lambda: held(spool))
        sender.kill()
        sender.wait()
        until(lambda: "cut off" in capfd.readouterr().err)
        time.sleep(2)
        assert list((tmp_path / "got").iterdir()) == []
        assert held(spool)
        assert store(port, series).returncode == 0
        (got,) = results(tmp_path / "got")
        emptied(spool)
    assert len(got.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 12


def test_what_does_not_fit_is_put_aside_with_the_reason(predictor: Predictor, spool: Path, tmp_path: Path) -> None:
    gap = fake_dicom.write(fake_dicom.without(fake_dicom.series(GRID), 5), tmp_path / "gap")
    mr = Predictor(predictor.bundle, threads=1)
    mr.bundle.data["modalities"] = ["MR"]
    try:
        with archive(tmp_path / "got", peer := free_port()), node(mr, spool, peer) as port:
            ct = fake_dicom.write(fake_dicom.series(GRID, series="ct"), tmp_path / "ct")
            assert store(port, gap).returncode == 0
            assert store(port, ct).returncode == 0
            until(lambda: len(reasons(spool)) == 2)
            said = " ".join(reasons(spool))
            assert "gap" in said
            assert "CT" in said
            assert "trained on MR" in said
            assert str(spool) not in said
            assert list((tmp_path / "got").iterdir()) == []
    finally:
        del mr.bundle.data["modalities"]
    failed = sorted((spool / "failed").iterdir())
    assert [len(list((folder / OBJECTS).iterdir())) for folder in failed] in ([11, 12], [12, 11])


def test_results_wait_for_the_archive(
    predictor: Predictor, spool: Path, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medlight.deploy.serve.dicom._FIRST_PAUSE", 0.5)
    peer = free_port()
    with node(predictor, spool, peer) as port:
        assert store(port, series).returncode == 0
        until(lambda: list(spool.glob(f"work/*/{RESULT}/*.dcm")))
        with archive(tmp_path / "got", peer):
            results(tmp_path / "got")
            emptied(spool)


def test_an_archive_that_takes_no_compressed_objects_or_refuses(
    predictor: Predictor, spool: Path, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medlight.deploy.serve.dicom._FIRST_PAUSE", 0.5)
    peer = free_port()
    with node(predictor, spool, peer) as port:
        with archive(tmp_path / "none", peer, "--refuse"):
            assert store(port, series).returncode == 0
            time.sleep(4)
            assert held(spool)
        with archive(tmp_path / "got", peer, "+xi"):  # implicit VR only
            (got,) = results(tmp_path / "got")
            emptied(spool)
    assert got.file_meta.TransferSyntaxUID == pydicom.uid.ImplicitVRLittleEndian


def garbage(result: Path) -> None:
    result.write_bytes(b"Doe^Jane " * 99)


def not_decompressed(result: Path) -> None:
    """Make it say that it is compressed, with what no decoder takes."""
    dataset = pydicom.dcmread(result)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"Doe^Jane " * 10])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(result)


@pytest.mark.parametrize(("damage", "said"), [(garbage, "InvalidDicomError at"), (not_decompressed, "RuntimeError at")])
def test_a_result_that_can_never_be_sent_is_put_aside_and_the_others_are_sent(
    predictor: Predictor,
    spool: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    said: str,
) -> None:
    monkeypatch.setattr("medlight.deploy.serve.dicom._FIRST_PAUSE", 0.5)
    peer, series = free_port(), {name: fake_dicom.series(GRID, series=name) for name in ("one", "two")}
    with node(predictor, spool, peer) as port:
        for number, (name, datasets) in enumerate(series.items()):
            assert store(port, fake_dicom.write(datasets, tmp_path / name)).returncode == 0
            until(lambda number=number: len(list(spool.glob(f"work/*/{RESULT}/*.dcm"))) == number + 1)
        first = min((spool / "work").iterdir(), key=lambda work: (work / OBJECTS).stat().st_mtime)
        damage(next((first / RESULT).glob("*.dcm")))
        with archive(tmp_path / "got", peer, "+xi"):
            (got,) = results(tmp_path / "got")
            until(lambda: not list((spool / "work").iterdir()))
    assert got.ReferencedSeriesSequence[0].SeriesInstanceUID == series["two"][0].SeriesInstanceUID
    (reason,) = reasons(spool)
    assert re.search(rf"^predicted, but the result can't be sent: {said}.*; send the series again\n$", reason), reason
    assert len(list((spool / "failed" / first.name / OBJECTS).iterdir())) == 12
    assert len(list((spool / "failed" / first.name / RESULT).glob("*.dcm"))) == 1
    told = capfd.readouterr().err
    assert f"{first.name}: put aside in failed: the result can't be sent" in told
    assert "it goes on" not in told
    assert "Doe" not in told + reason


def test_what_can_not_be_put_aside_waits_like_any_other(
    predictor: Predictor, spool: Path, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, so that no reason can be written: the others are sent all the same."""
    monkeypatch.setattr("medlight.deploy.serve.dicom._FIRST_PAUSE", 0.5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "fail", full)
    bad = spool / "work" / "0123456789ab-000000"
    for name in (OBJECTS, RESULT):
        (bad / name).mkdir(parents=True)
    garbage(bad / RESULT / "case.dcm")
    with archive(tmp_path / "got", peer := free_port()), node(predictor, spool, peer) as port:
        assert store(port, series).returncode == 0
        results(tmp_path / "got")
        until(lambda: [work.name for work in (spool / "work").iterdir()] == [bad.name])


def test_only_those_that_may_call(predictor: Predictor, spool: Path, series: Path) -> None:
    with node(predictor, spool, free_port(), callers=["CT1"]) as port:
        assert store(port, series).returncode != 0
        assert echo(port) != 0
        assert echo(port, "-aet", "CT1") == 0
        assert held(spool) == []


def test_a_full_spool_takes_no_more(predictor: Predictor, spool: Path, series: Path) -> None:
    with node(predictor, spool, free_port(), most=2000) as port:
        assert "OutOfResources" in store(port, series, words=("-v",)).stderr
        assert sum(file.stat().st_size for file in held(spool)) < 6000


def test_what_failed_makes_way(tmp_path: Path) -> None:
    kept = Spool(tmp_path, 1000, 0)
    for name in "ab":
        (tmp_path / "failed" / name / OBJECTS).mkdir(parents=True)
        (tmp_path / "failed" / name / OBJECTS / "x").write_bytes(b"\0" * 600)
        os.utime(tmp_path / "failed" / name, (1, 1) if name == "b" else None)
    kept.close()
    kept = Spool(tmp_path, 1000, 0)
    assert kept.room() == 400
    assert [folder.name for folder in (tmp_path / "failed").iterdir()] == ["a"]
    kept.close()


def test_one_spool_for_one_listener(tmp_path: Path) -> None:
    kept = Spool(tmp_path, 1000, 0)
    with pytest.raises(UsageError, match="another listener"):
        Spool(tmp_path, 1000, 0)
    kept.close()
    Spool(tmp_path, 1000, 0).close()


def test_nonsense_on_the_wire_ends_a_connection_and_nothing_else(predictor: Predictor, spool: Path) -> None:
    with node(predictor, spool, free_port()) as port:
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x01\0" + struct.pack(">I", 2**32 - 1) + b"\0" * 4096, b"\x01"):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(said)
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass
        assert echo(port) == 0


@pytest.mark.parametrize("control", [b"\x01", b"\x00"])
def test_what_is_no_object_may_not_fill_the_memory(predictor: Predictor, spool: Path, control: bytes) -> None:
    """Pieces of a command, or of data that belong to none, that never end."""
    entity = AE()
    entity.add_requested_context(Verification)
    with node(predictor, spool, free_port()) as port:
        association = entity.associate("127.0.0.1", port)
        wire = association.dul.socket.socket
        content = b"\1" + control + b"\0" * 60_000
        piece = b"\4\0" + struct.pack(">II", len(content) + 4, len(content)) + content
        with contextlib.suppress(OSError):
            for _ in range(200):
                wire.sendall(piece)
                if association.is_aborted:
                    break
                time.sleep(0.01)
            else:
                raise AssertionError("12 MB were taken")
        until(lambda: not association.is_established)
        assert echo(port) == 0


def test_an_object_bigger_than_the_room_is_not_written_to_the_end(
    predictor: Predictor, spool: Path, tmp_path: Path
) -> None:
    big = fake_dicom.instance(np.zeros((8192, 8192), np.uint16), "CT")
    fake_dicom.save(big, tmp_path / "big")
    with node(predictor, spool, free_port(), most=20 << 20) as port:
        assert store(port, tmp_path / "big").returncode != 0
        assert echo(port) == 0
        emptied(spool)


def test_pieces_of_a_restart_are_put_right(tmp_path: Path) -> None:
    """A series whose sender was done is complete; others wait; what was half deleted or half made is gone."""
    for name in ("receiving", "incoming/done", "incoming/cut", "work/empty", "work/one-1/objects", "work/one-1/making"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "receiving" / "tmp.dcm").touch()
    (tmp_path / "receiving" / "x.gone").mkdir()
    for name in ("done", "cut"):
        (tmp_path / "incoming" / name / "a.dcm").write_bytes(b"x")
    (tmp_path / "incoming" / "done" / WHOLE).touch()
    kept = Spool(tmp_path, 1 << 30, 0)
    assert [folder.name.split("-")[0] for folder in kept.complete()] == ["done"]
    assert list(kept.receiving.iterdir()) == []
    assert sorted(folder.name.split("-")[0] for folder in kept.waiting()) == ["done", "one"]
    assert (tmp_path / "incoming" / "cut" / "a.dcm").exists()
    work = kept.waiting()[0]
    assert [kept.begin(work) for _ in range(4)] == [True, True, True, False]
    kept.close()


def serve(bundle: Path, spool: Path, peer: int, port: int, said: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "medlight", "serve", str(bundle), "--dicom", str(port), "--threads", "1"]
    command += ["--send-to", f"ARCHIVE@127.0.0.1:{peer}", "--spool", str(spool), "--quiet", "1"]
    with said.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    until(lambda: echo(port) == 0)
    return process


def test_nothing_is_lost_when_the_server_is_killed(bundle: Path, spool: Path, series: Path, tmp_path: Path) -> None:
    """Killed once when a series has just come in, once when its result waits to be sent."""
    peer, port, said = free_port(), free_port(), tmp_path / "said.txt"
    process = serve(bundle, spool, peer, port, said)
    assert store(port, series).returncode == 0
    process.kill()
    process.wait()
    assert len(held(spool)) >= 12
    process = serve(bundle, spool, peer, port, said)
    until(lambda: list(spool.glob(f"work/*/{RESULT}/*.dcm")))
    process.kill()
    process.wait()
    with archive(tmp_path / "got", peer):
        process = serve(bundle, spool, peer, port, said)
        (got,) = results(tmp_path / "got")
        emptied(spool)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    assert len(got.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 12
    text = said.read_text()
    assert "Traceback" not in text
    assert not any(secret in text for secret in fake_dicom.SECRETS)


@pytest.mark.parametrize(
    "text", ["ARCHIVE", "ARCHIVE@host", "@host:104", "A@host:0", "A@host:x", f"{'X' * 17}@host:104"]
)
def test_destinations_that_can_not_be(text: str) -> None:
    with pytest.raises(UsageError):
        Peer.parse(text)


def test_a_destination_by_name_or_address() -> None:
    assert Peer.parse("ARCHIVE@10.0.0.5:104") == Peer("ARCHIVE", "10.0.0.5", 104)
    assert Peer.parse("A@[::1]:11112") == Peer("A", "::1", 11112)
    assert copy.copy(Peer.parse("A@pacs.example:104")) == Peer("A", "pacs.example", 104)
    assert shutil.which("storescp")
