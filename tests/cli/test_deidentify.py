"""``medlight data deidentify``: what is said, what is kept, the exit code."""

from __future__ import annotations

import argparse
import json

import pytest

from medlight.cli import deidentify as command
from medlight.errors import UsageError
from tests.data import fake_dicom as fake


def run(capsys, *arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parser.add_argument("--json")
    code = command.run(parser.parse_args([*map(str, arguments), "--json", "copies.json"]))
    said = capsys.readouterr()
    with open("copies.json") as file:
        return code, said.out + said.err, json.load(file)


def test_copies_are_counted_and_nobody_is_named(workdir, capsys):
    fake.write(fake.series(), workdir / "in" / "Zyzzyva")
    fake.save(fake.secondary_capture(), workdir / "in" / "Zyzzyva" / "screen")
    (workdir / "in" / "notes.txt").write_text("no DICOM")
    code, said, found = run(capsys, "in", "out", "--workers", "1")
    assert code == 0
    assert "7 objects in 2 series of 1 subjects" in said
    assert "1 files passed over" in said
    assert said.count("look at P") == 1
    assert len(found["written"]) == 7
    assert all((workdir / "out" / one["file"]).is_file() for one in found["written"])
    assert sum(bool(one["risk"]) for one in found["written"]) == 1
    assert "zyzzyva" not in json.dumps(found).lower() + said.lower()


def test_what_is_left_out_is_an_exit_code(workdir, capsys):
    fake.write(fake.series(), workdir / "in")
    fake.save(fake.report(), workdir / "in" / "Zyzzyva")
    code, said, found = run(capsys, "in", "out", "--workers", "1")
    assert code == 1
    assert "left out: in/Zyzzyva: a structured report" in said
    assert "zyzzyva" not in json.dumps(found).lower()
    assert list(found["left_out"].values()) == [1]
    (workdir / "empty").mkdir()
    assert run(capsys, "empty", "nothing")[0] == 1


def test_calls_that_are_wrong(workdir, capsys):
    fake.write(fake.series(), workdir / "in")
    for arguments in (("in", "in/out"), ("in", "in"), ("absent", "out"), ("in", "out", "--workers", "0")):
        with pytest.raises(UsageError):
            run(capsys, *arguments)
