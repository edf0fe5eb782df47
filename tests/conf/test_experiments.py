"""Every shipped YAML runs: a study that no longer fits the code fails here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from medlight.cli.main import main
from medlight.reproduce import expected as expected_yaml

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "experiments"


def fits() -> dict[str, list[Path]]:
    """By name the files of each fit: a study's variants, other files alone or before the one they name."""
    found: dict[str, list[Path]] = {}
    for folder in sorted({path.parent for path in STUDIES.glob("*/*.yaml")}):
        expected = folder / "expected.yaml"
        variants = expected_yaml.read(folder).variants.values() if expected.is_file() else []
        parts = {folder / file for variant in variants for file in variant.files}
        found |= {f"{folder.name}/{v.name}": [folder / file for file in v.files] for v in variants}
        for path in sorted(set(folder.glob("*.yaml")) - parts):
            if "model" in (yaml.safe_load(path.read_text()) or {}):
                then = re.match(r"#.*\bbefore (\S+\.yaml)", path.read_text())
                found[f"{folder.name}/{path.stem}"] = [path, *([folder / then[1]] if then else [])]
    return found


FITS = fits()
SWEEPS = [p for p in sorted(STUDIES.glob("*/*.yaml")) if "space" in (yaml.safe_load(p.read_text()) or {})]


@pytest.fixture(scope="session")
def studies(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the real scans and the cases that studies cut for themselves; tests share its store."""
    root = tmp_path_factory.mktemp("data")
    for folder in data_root.iterdir():
        (root / folder.name).symlink_to(folder)
    for script in STUDIES.glob("*/cut.py"):
        subprocess.run([sys.executable, str(script), str(root / script.parent.name)], check=True)
    return root


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("files", FITS.values(), ids=FITS)
def test_two_steps_of_each_fit(
    files: list[Path], studies: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDLIGHT_DATA", str(studies))
    short = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--precision=32-true", "--channels_last=false"]
    more = [
        f"--data.store_dir={studies / 'store'}",
        "--data.steps_per_epoch=2",
        "--data.workers=0",
        "--data.batch_size=2",
    ]
    config = [argument for path in files for argument in ("-c", str(path))]
    texts = [path.read_text() for path in files]
    if any("variant:" in text for text in texts):  # it would start from another run
        more.append("--model.pretrained=null")
    if any(re.search(r"labelled_per_batch: \d", text) for text in texts):
        more += ["--data.batch_size=4", "--data.labelled_per_batch=2"]
    assert main(["fit", *config, *short, *more]) == 0
    (run,) = (workdir / "mlruns" / "artifacts").iterdir()
    assert (run / "artifacts" / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=_name)
def test_one_short_trial_of_each_sweep(
    path: Path, studies: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDLIGHT_DATA", str(studies))
    short = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--precision=32-true", "--channels_last=false"]
    more = [
        f"--data.store_dir={studies / 'store'}",
        "--data.steps_per_epoch=2",
        "--data.workers=0",
        "--data.batch_size=2",
    ]
    assert main(["sweep", "-c", str(path), "--trials", "1", "--workers", "1", *short, *more]) == 0
