"""`medlight serve` as a process: what it refuses to begin with, what it says, how it ends."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from medlight.cli.main import main
from medlight.cli.serve import size_of
from medlight.deploy.bundle import Bundle
from medlight.errors import UsageError
from medlight.scans import write_nifti
from tests.data import fake
from tests.deploy.serve.served import curl, dcmtk, echo, tiny, until

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give --http PORT, --dicom PORT, or both"),
        (["--http", "0", "--host", "0.0.0.0"], "there is no token; mend: give --token-file or MEDLIGHT_TOKEN"),
        (["--http", "0", "--host", "192.0.2.7", "--token-file", "token"], "on 192.0.2.7: can't be listened on"),
        (["--http", "0", "--host", "nowhere.invalid", "--token-file", "token"], "no such name or address"),
        (["--http", "0", "--token-file", "absent"], "--token-file absent: can't be read"),
        (["--http", "0", "--token-file", "short"], "at least 16 characters"),
        (["--http", "70000"], "choose a port"),
        (["--http", "0", "--max-upload", "much"], "--max-upload much: is no size"),
        (["--dicom", "0"], "give --send-to AET@HOST:PORT"),
        (["--http", "0", "--send-to", "PACS@127.0.0.1:104"], "--send-to: is for --dicom"),
        (["--dicom", "0", "--send-to", "PACS@127.0.0.1:104", "--token-file", "t"], "--token-file: is for --http"),
        (["--http", "0", "--quiet", "-1"], "--quiet -1: give a number of at least 0"),
        (["--http", "0", "--quiet", "nan"], "--quiet nan: give a number"),
        (["--http", "0", "--quiet", "inf"], "--quiet inf: give a number"),
        (["--dicom", "0", "--send-to", "PACS"], "is not AET@HOST:PORT"),
        (["--dicom", "0", "--send-to", "PACS@127.0.0.1:104", "--aet", "X" * 17], "1 to 16 characters"),
        (["--http", "0", "--threads", "0"], "at least 1"),
    ],
)
def test_wrong_calls_are_refused(
    bundle: Path, workdir: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (workdir / "token").write_text(TOKEN + "\n")
    (workdir / "short").write_text("hunter2\n")
    assert main(["serve", str(bundle), *words]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert error.count("\n") == 1


def test_no_patients_come_into_the_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dicom", "0", "--send-to", "PACS@127.0.0.1:104", "--spool", str(bundle / "spool")]
    assert main(["serve", str(bundle), *words]) == 2
    assert "never written to" in capsys.readouterr().err


def test_a_port_that_is_taken(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(bundle), "--threads", "1", "--http", port]) == 2
    assert f"--http {port} on 127.0.0.1: can't be listened on" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("2GiB", 2 << 30), ("500 MB", 500_000_000), ("1.5k", 1500)])
def test_sizes(text: str, size: int) -> None:
    assert size_of("--max-upload", text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "GiB", "1e9", "1 PB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        size_of("--max-upload", text)


@dcmtk
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_both_doors_at_once_and_a_clean_end(bundle: Path, tmp_path: Path, end: signal.Signals) -> None:
    write_nifti(fake.volume((20, 22, 12), seed=3, spacing=(1.0, 1.0, 2.5))[0], tmp_path / "scan.nii.gz")
    (tmp_path / "token").write_text(TOKEN)
    command = [sys.executable, "-m", "medlight", "serve", str(bundle), "--http", "0", "--dicom", "0", "--threads", "1"]
    command += ["--host", "0.0.0.0", "--token-file", str(tmp_path / "token"), "--spool", str(tmp_path / "spool")]
    command += ["--send-to", "ARCHIVE@127.0.0.1:9"]
    said = tmp_path / "said.txt"
    with said.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        until(lambda: "Ctrl-C ends it" in said.read_text() or process.poll() is not None)
        url = re.search(r"HTTP: (\S+) \(with the token\)", said.read_text())
        port = re.search(r"DICOM: MEDLIGHT@0.0.0.0:(\d+)", said.read_text())
        assert url and port, said.read_text()  # noqa: PT018
        assert curl(f"{url[1]}/predict", "-F", f"file=@{tmp_path / 'scan.nii.gz'}").status == 401
        authorised = ["-H", f"Authorization: Bearer {TOKEN}"]
        assert curl(f"{url[1]}/predict", *authorised, "-F", f"file=@{tmp_path / 'scan.nii.gz'}").status == 200
        assert echo(int(port[1])) == 0
    finally:
        process.send_signal(end)
        assert process.wait(60) == 0
    text = said.read_text()
    assert text.endswith("ending\n")
    assert "\nmodality not checked: the bundle was trained on scans that tell none (fit --data.modality=MR " in text
    assert "Traceback" not in text
    assert TOKEN not in text


def test_the_command_imports_no_torch(bundle: Path, tmp_path: Path) -> None:
    code = """
import sys, threading, os, signal, time
from medlight.cli.main import main
def end():
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # a busy machine takes long to come so far
        time.sleep(0.1)
    time.sleep(3)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end, daemon=True).start()
code = main(["serve", sys.argv[1], "--http", "0", "--threads", "1"])
sys.exit(code or ", ".join({"torch", "monai", "lightning", "mlflow"} & set(sys.modules)) or 0)
"""
    known = Bundle.load(shutil.copytree(bundle, tmp_path / "known"))
    known.data["modalities"] = ["CT"]
    known.save()
    done = subprocess.run([sys.executable, "-c", code, known.root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "modality" not in done.stdout
