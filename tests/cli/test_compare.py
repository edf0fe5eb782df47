"""``medlight compare`` as a user calls it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from medlight.cli.main import main
from tests.compare.recorded import Recorder, dice_cases, dice_curves, sweep


@pytest.fixture
def recorded(workdir):
    recorder = Recorder(workdir)
    sweep(recorder)
    return recorder


def test_table_json_and_page(recorded, workdir, capsys):
    assert main(["compare", "hippocampus-sweep", "--json", "out/c.json", "--html", "out/c.html"]) == 0
    printed = capsys.readouterr().out
    for text in ("DynUNet", "pruned: below the median at step 20", "failed: over 4 GB", "Holm", "Optimistic"):
        assert text in printed
    assert "class_path" not in printed
    assert json.loads((workdir / "out/c.json").read_text())["runs"][0]["name"] == "hippocampus-sweep-0"
    assert (workdir / "out/c.html").read_text().startswith("<!doctype html>")
    assert str(workdir / "out/c.html") in printed


def test_json_on_standard_output_is_all_there_is(recorded, capsys):
    assert main(["compare", "hippocampus-sweep", "--json", "-", "--html", "c.html"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["state"] for run in found["runs"]] == ["complete"] * 5 + ["failed", "pruned"]


def test_nothing_is_cut_where_there_is_no_terminal(recorded, capsys):
    name = "a-name-of-a-hundred-letters" * 4
    recorded.run(name, curves=dice_curves(0.7), cases={"val": dice_cases(0.7)})
    assert main(["compare", "hippocampus-sweep", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.endswith(" ")]
    (line,) = [line for line in lines if name in line]
    assert "complete" in line
    assert "0.7" in line


@pytest.mark.parametrize("columns", [80, 120, 400])
def test_a_terminal_is_never_wider_than_it_is(recorded, workdir, columns):
    master, slave = pty.openpty()
    env = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
    command = [sys.executable, "-m", "medlight", "compare", "hippocampus-sweep"]
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=env, cwd=workdir) as process:
        os.close(slave)
        text = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:
                break
            if not part:
                break
            text += part
    assert process.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text.decode())
    assert max(map(len, plain.splitlines())) <= columns
    for word in ("DynUNet", "0.8843", "[0.8672, 0.8988]", "best", "0.0266"):
        assert word in plain


def test_one_run_is_summed_up(recorded, capsys):
    assert main(["compare", "hippocampus-sweep-0"]) == 0
    printed = capsys.readouterr().out
    assert "worst case" in printed
    assert "dice/Posterior" in printed
    assert main(["compare", "hippocampus-sweep-0", "--json", "-", "--html", "one.html"]) == 0
    assert json.loads(capsys.readouterr().out)["cases"]["val"][0]["metric"] == "dice"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hippocampus-swep"], "did you mean 'hippocampus-sweep'?"),
        (["hippocampus-sweep", "--metric", "dise"], "--metric dise: no run has it (did you mean 'dice'?)"),
        (["hippocampus-sweep", "--metrics", "dice"], "no such option"),
        ([], "required"),
    ],
)
def test_wrong_calls_are_refused_in_one_line(recorded, capsys, arguments, said):
    try:
        code = main(["compare", *arguments])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert said in error
    assert "\n" not in error


def test_a_folder_without_runs_is_left_as_it_is(workdir, capsys):
    assert main(["compare", "x"]) == 2
    assert "medlight fit" in capsys.readouterr().err
    assert list(workdir.iterdir()) == []
