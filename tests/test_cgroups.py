"""What a container or a job allows of the memory: folders as Linux shows them, of both versions."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from medlight import cgroups
from medlight.cli import machine
from medlight.deploy.runtime import memory
from medlight.errors import MedlightError
from medlight.scans.dicom import archive
from medlight.scans.dicom.frames import Place

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree of groups, on a machine where 64 GiB are free."""
    there = psutil.virtual_memory()._replace(total=96 * GIB, available=64 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: there)
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "_OWN", tmp_path / "own")
    (tmp_path / "own").write_text("0::/\n")
    return tmp_path / "cgroup"


def group(folder: Path, limit: int | str, taken: int, cached: int, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("max", "current") if version == 2 else ("limit_in_bytes", "usage_in_bytes")
    for name, value in zip(names, (limit, taken), strict=True):
        (folder / f"memory.{name}").write_text(f"{value}\n")
    stat = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{stat} {cached}\nactive_file 7\n")


def test_without_groups_it_is_the_machines(root: Path) -> None:
    assert cgroups.memory_limit() is None
    assert cgroups.free_memory() == 64 * GIB
    group(root, "max", GIB, 0)
    group(root / "memory", 9223372036854771712, GIB, 0, version=1)
    assert cgroups.memory_limit() is None
    assert cgroups.free_memory() == 64 * GIB


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts_less_what_is_taken(root: Path, version: int) -> None:
    """Copies of files give way, and are not counted as taken."""
    group(root / "memory" if version == 1 else root, 8 * GIB, 5 * GIB, 3 * GIB, version)
    assert cgroups.memory_limit() == 8 * GIB
    assert cgroups.free_memory() == 6 * GIB


def test_a_limit_above_what_is_free_changes_nothing(root: Path) -> None:
    group(root, 80 * GIB, GIB, 0)
    assert cgroups.free_memory() == 64 * GIB


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_of_nested_groups_counts(root: Path, version: int) -> None:
    top = root / "memory" if version == 1 else root
    (root.parent / "own").write_text(
        "5:cpu,memory:/slurm/job_7/step_0\n3:cpuset:/other\n" * (version == 1) + "0::/slurm/job_7/step_0\n"
    )
    group(top / "slurm" / "job_7" / "step_0", 9223372036854771712 if version == 1 else "max", GIB, 0, version)
    group(top / "slurm" / "job_7", 4 * GIB, 3 * GIB, 0, version)
    group(top / "slurm", 32 * GIB, 16 * GIB, 0, version)
    group(top / "slurm" / "job_8", GIB, GIB, 0, version)  # another's
    assert cgroups.memory_limit() == 4 * GIB
    assert cgroups.free_memory() == GIB


def test_a_group_that_is_not_seen_from_inside(root: Path) -> None:
    """Docker with version 1: the path is the host's, and the container's own folder is the root."""
    (root.parent / "own").write_text("4:memory:/docker/0123\n")
    group(root / "memory", 2 * GIB, 3 * GIB, 0, version=1)
    assert cgroups.free_memory() == 0


def test_all_ask_for_it(root: Path) -> None:
    group(root, 2 * GIB, GIB, 0)
    assert memory.free() == GIB
    assert machine.hardware()["memory_gb"] == 2.1
    assert machine.hardware()["memory_free_gb"] == 1.1
    with pytest.raises(MedlightError, match=r"takes 1\.5 GiB of memory, and 1\.0 are free"):
        archive.check_memory(Place(Path("a.dcm")), 3 * GIB // 2)
