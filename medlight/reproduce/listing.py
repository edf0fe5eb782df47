"""Every study with its state and its last verdicts, from the files in its folder alone."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medlight.errors import UsageError
from medlight.reproduce import expected
from medlight.reproduce.expected import FILE, Study
from medlight.reproduce.markdown import HEAD, cells, counted, table

LOCKS = Path("mlruns") / "locks"

COMMAND = "medlight reproduce --list experiments --markdown docs/reproductions.md"


@dataclass(frozen=True)
class Listed:
    """A study and what its results.json says. ``broken``: why its expected.yaml can't be read."""

    folder: Path
    study: Study | None
    results: dict[str, Any] = field(default_factory=dict)
    broken: str = ""

    @property
    def state(self) -> str:
        """``not run``, ``complete``, ``7 of 9 runs``; whether the study has changed since."""
        if self.study is None:
            return "expected.yaml can't be read"
        if not self.results:
            return "not run"
        from medlight.reproduce.report import files_digest

        changed = files_digest(self.study) != self.results.get("files_digest")
        return f"{self.results['state']}{', its files changed since' if changed else ''}"

    @property
    def running(self) -> bool:
        """Whether a medlight reproduce works on it in this folder now."""
        file = LOCKS / f"reproduce-{self.study.name if self.study else ''}.lock"
        if not file.is_file():
            return False
        try:
            with FileLock(file, timeout=0):
                return False
        except Timeout:
            return True

    @property
    def verdict(self) -> str:
        """``3 reproduced, 1 undecided``."""
        words = Counter(row["verdict"] for row in self.results.get("verdicts", []))
        return ", ".join(f"{count} {word}" for word, count in words.items()) or "–"

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        kept = {key: self.results.get(key) for key in ("date", "commit", "seeds", "verdicts")}
        name = self.study.name if self.study else self.folder.name
        return {"study": name, "folder": str(self.folder), "state": self.state, "running": self.running, **kept}


def listed(root: Path) -> list[Listed]:
    """The studies below a folder (``ROOT/NAME/expected.yaml``), by name.

    Raises: UsageError where there is no such folder, or no study in it.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; give the one that holds the studies")
    files = sorted(root.glob(f"*/{FILE}")) or sorted(root.glob(FILE))
    if not files:
        raise UsageError(f"{root}: no study in it (a folder with an {FILE})")
    return [_listed(file.parent) for file in files]


def _listed(folder: Path) -> Listed:
    try:
        study = expected.read(folder)
    except UsageError as error:
        return Listed(folder, None, broken=str(error))
    file = folder / "results.json"
    try:
        return Listed(folder, study, json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})
    except ValueError:
        return Listed(folder, None, broken=f"{file}: not valid JSON; run the study again")


def page(studies: Sequence[Listed], target: Path, command: str = COMMAND) -> str:
    """Return docs/reproductions.md; ``target`` is where it will lie, for its links, ``command`` what writes it."""
    lines = [
        "# Reproductions",
        "",
        f"Written by `{command}`.",
    ]
    lines += ["", *table(("study", "state", "verdicts", "last run"), [_summary(each, target) for each in studies])]
    for each in studies:
        lines += ["", *_section(each, target)]
    return "\n".join(lines) + "\n"


def _summary(each: Listed, target: Path) -> list[str]:
    name = each.study.name if each.study else each.folder.name
    link = os.path.relpath(each.folder.resolve(), target.resolve().parent)
    return [f"[{name}]({Path(link).as_posix()})", each.state, each.verdict, str(each.results.get("date", "–"))]


def _section(each: Listed, target: Path) -> list[str]:
    if each.study is None:
        return [f"## {each.folder.name}", "", each.broken]
    study, results = each.study, each.results
    lines = [f"## {study.name}", "", "\n\n".join(text for text in (study.paper, study.source) if text)]
    if not results:
        return [*lines, "", f"{len(study.expected)} expectations over {len(study.variants)} variants, not run yet."]
    lines += ["", *table(HEAD, [cells(row) for row in results["verdicts"]])]
    link = Path(os.path.relpath(each.folder.resolve(), target.resolve().parent)) / "results.md"
    minutes = sum(run.get("minutes", 0.0) for run in results["runs"])
    about = f"{counted(results['seeds'])}, {minutes / 60:.1f} hours in all, {results['date']}"
    lines += ["", f"{about}; runs, sources, deviations and the rule: [results.md]({link.as_posix()})."]
    return lines
