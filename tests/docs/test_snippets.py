"""The commands of the README and of the docs run as they are written, in a folder with fake scans."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data import fake, fake_dicom

ROOT = Path(__file__).parents[2]
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if "```bash" in page.read_text()]
BLOCK = re.compile(r"^```(yaml|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_snippet_runs(page: Path, tmp_path: Path) -> None:
    fake.folders(tmp_path, cases=6, shape=(20, 20, 20))
    fake_dicom.write(fake_dicom.series(fake_dicom.Grid(shape=(20, 20, 20))), tmp_path / "scans" / "head")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name in ("MEDLIGHT_DATA", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    ran = 0
    for kind, text in BLOCK.findall(page.read_text()):
        if kind == "yaml":
            (tmp_path / text.splitlines()[0].lstrip("# ")).write_text(text)
            continue
        for command in filter(None, (re.sub(r"\s{2,}#.*", "", line).strip() for line in text.splitlines())):
            done = subprocess.run(
                command, shell=True, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=500
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            ran += 1
    assert ran
    if page.name == "README.md":
        assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 6
        assert len(list((tmp_path / "nifti").glob("*.nii.gz"))) == 1
        assert len(list((tmp_path / "give-away").rglob("*.dcm"))) == 20
        assert (tmp_path / "compare.html").stat().st_size > 10_000
