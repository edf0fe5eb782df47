from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medlight.cli.main import COMMANDS, command_parser, main
from medlight.cli.output import ready
from tests.launch import study

HEAVY = ("torch", "lightning", "monai", "torchio", "mlflow", "optuna", "pandas", "scipy", "matplotlib")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_imports_nothing_heavy(name: str) -> None:
    code = (
        "import sys; from medlight.cli.main import main\n"
        f"try: main(['{name}', '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        f"heavy = [m for m in {HEAVY} if m in sys.modules]; assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "example" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_parser_and_says_what_it_does(name: str) -> None:
    parser, module = command_parser(name)
    assert parser.description == COMMANDS[name]
    assert callable(module.run)


def test_root_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["swep"]) == 2
    assert "did you mean 'sweep'" in capsys.readouterr().err


def test_an_unknown_argument_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "x", "--htlm", "y"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (["fit", "-c", "fit.yaml", "--resumee"], "--resume"),
        (["fit", "-c", "fit.yaml", "--on-bad-cas=skip"], "--on-bad-case"),
        (["sweep", "statu"], "status"),
        (["sweep", "-c", "sweep.yaml", "--trial", "3"], "--trials"),
        (["data", "prepar"], "prepare"),
        (["data", "prepare", "-c", "fit.yaml", "--worker", "1"], "--workers"),
        (["compare", "x", "--htm", "y"], "--html"),
        (["data", "check", "x", "--depe"], "--deep"),
        (["data", "check", "x", "--dep"], "--deep"),
    ],
)
def test_a_misspelled_flag_names_the_nearest(call: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(call)
    except SystemExit as end:
        code = end.code
    assert code == 2
    said = capsys.readouterr().err
    assert f"did you mean '{meant}'" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (["check", "in", "--on", "gap=interpolate", "tilt=deskew"], "write --on tilt=deskew"),
        (["info", "in", "in"], "in: one word too many for data info; see medlight data info --help"),
        (["deidentify", "a", "b", "out"], "out: one word too many for data deidentify"),
        (["check", "in", "--depe"], "'--deep'?); see medlight data check --help"),
        (["check", "in", "--zyzzyva=3"], "--zyzzyva: not an option of data check"),
        (["info", "in", "--data.x=3"], "--data.x: not an option of data info"),
    ],
)
def test_an_action_without_overrides_speaks_of_none(
    call: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *call]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "override" not in told
    assert len(told.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("target", [["--json", "/dev/full"], ["--json", "-"], []])
def test_a_full_disk_is_one_line(target: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"")
    with open("/dev/full", "w") as full:
        said = subprocess.run(
            [sys.executable, "-m", "medlight", "data", "check", str(tmp_path), *target],
            stdout=full if "/dev/full" not in target else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert said.returncode == 1
    assert "No space left on device" in said.stderr.splitlines()[-1]
    assert "Traceback" not in said.stderr
    assert "Exception ignored" not in said.stderr


@pytest.mark.parametrize("target", ["/proc/found.json", "/proc/new/found.json"])
def test_json_that_cannot_be_written_is_refused_before_the_work(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.dcm").write_bytes(b"")
    assert main(["data", "check", str(tmp_path), "--json", target]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"medlight data: --json {target}: can't be written (")
    assert told.err.count("\n") == 1


def test_json_is_as_it_was_until_there_is_something_to_write(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("{}")
    ready(str(kept))
    ready(str(tmp_path / "new" / "new.json"))
    assert kept.read_text() == "{}"
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["reproduce", "--list", ".", "--markdown", "folder"],
        ["compare", "0123abcd", "--html", "folder"],
        ["doctor", "--json", "folder"],
    ],
)
def test_a_folder_is_no_file_to_write(words: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "folder").mkdir()
    assert main(words) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"medlight {words[0]}: {words[-2]} folder: is a folder; name a file\n")


def test_a_folder_that_can_t_be_written_is_named_with_a_mend(tmp_path: Path) -> None:
    study.write(tmp_path, study.config())
    tmp_path.chmod(0o555)
    command = [sys.executable, "-m", "medlight", "data", "prepare", "-c", "fit.yaml"]
    if os.getuid() == 0:  # whom permissions stop only without this right
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    finally:
        tmp_path.chmod(0o755)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith("medlight data: ")
    assert said.endswith("mlruns: Permission denied; mend: change its permissions, or work in another folder")
