"""A table of cases: CSV with a header line, or JSON."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medlight.config import nearest
from medlight.errors import UsageError
from medlight.prepare.case import BadCase, Box, Case, CaseList
from medlight.prepare.paths import data_path
from medlight.prepare.sources import drop_duplicates, labels_from, read_json
from medlight.scans.files import shown
from medlight.scans.read import format_of

COLUMNS = ("id", "image", "image:NAME", "label", "target", "subject", "site", "split", "boxes", "table:NAME")
SPLITS = ("train", "val", "test")
Row = Mapping[str, Any]


class Manifest:
    """Cases listed in a CSV or JSON file.

    Columns: ``id`` (a DICOM case without one goes by a digest of its content, see `Store.prepare`); ``image``, or
    ``image:NAME`` for each of several: a file, or the folder or zip of a DICOM series; ``label`` (a label map, a
    DICOM-SEG or an RTSTRUCT, as a file or alone in a folder); ``target`` (a class
    index or name; several numbers as ``0;1;1`` for several labels at once; a number with a point for regression);
    ``subject``, ``site``, ``split`` (train, val, test); ``table:NAME``. JSON is a list of such rows (or has it under
    ``cases``), and may have ``boxes``: a list of ``{low: [i, j, k], high: [i, j, k], label: n}``. Paths are relative to
    the manifest's folder.
    label_names: voxel value to name, as in `ImageFolders`. unlabelled: take rows without a label or target too.
    """

    def __init__(
        self, path: str, label_names: dict[int, str | dict[str, Any]] | None = None, unlabelled: bool = False
    ) -> None:
        self.path, self.label_names, self.unlabelled = path, labels_from(label_names), unlabelled

    def cases(self) -> CaseList:
        """List the cases in the file's order."""
        file = data_path(self.path)
        rows = _rows(file)
        _check_columns(file, rows)
        asked = [column for column in ("label", "target") if any(_filled(row, column) for row in rows)]
        if not asked and not self.unlabelled:
            raise UsageError(f"{shown(file)}: no column label or target; add one, or set unlabelled: true")
        bad: list[BadCase] = []
        classes = _class_names(rows)
        cases = []
        for number, row in enumerate(rows, start=1):
            name = str(row.get("id") or "").strip() or _unnamed(row) or f"row {number}"
            fault = self._fault(file, row, asked)
            try:
                case = None if fault else _case(file, name, row, classes)
            except (KeyError, TypeError, ValueError) as error:
                fault = f"a target or box is not written as it should be ({error}); correct it"
            if fault or case is None:
                bad.append(BadCase(name, f"{shown(file)} row {number}: {fault}"))
            else:
                cases.append(case)
        targets = [case.target for case in cases if case.target is not None]
        several = bool(targets) and all(isinstance(t, tuple) and len(t) > 1 and set(t) <= {0.0, 1.0} for t in targets)
        names = classes or _numbered(targets, several)
        return CaseList(drop_duplicates(cases, bad), bad, self.label_names, names, several)

    def _fault(self, file: Path, row: Row, asked: list[str]) -> str | None:
        """What is wrong with a row, and the mend."""
        images = _images(file, row)
        if not images:
            return "has no image; fill the column image (or image:NAME)"
        if not _filled(row, "id") and format_of(next(iter(images.values()))) != "dicom":
            return "has no id; give each case its own"
        files = list(images.values()) + ([file.parent / str(row["label"])] if _filled(row, "label") else [])
        for path in files:
            if not path.exists():
                return f"{shown(path)} is not there; add the file, correct the path, or set on_bad_case: skip"
        for column in asked:
            if not _filled(row, column) and not self.unlabelled:
                return f"has no {column}; fill it, set unlabelled: true, or set on_bad_case: skip"
        if _filled(row, "split") and row["split"] not in SPLITS:
            return f"the split {row['split']!r} is none of {', '.join(SPLITS)}{nearest(str(row['split']), SPLITS)}"
        return None


def _rows(file: Path) -> list[Row]:
    if file.suffix.lower() == ".json":
        listed = read_json(file)
        rows = listed.get("cases") if isinstance(listed, dict) else listed
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UsageError(f"{shown(file)}: expected a list of cases (or one under the key 'cases')")
    else:
        try:
            with file.open(newline="", encoding="utf-8-sig") as stream:
                rows = list(csv.DictReader(stream))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{shown(file)}: can't be read as CSV in UTF-8 ({error})") from None
    if not rows:
        raise UsageError(f"{shown(file)}: lists no case")
    return rows


def _check_columns(file: Path, rows: list[Row]) -> None:
    plain = [column for column in COLUMNS if ":" not in column]
    for column in dict.fromkeys(key for row in rows for key in row):
        if column is None:
            raise UsageError(f"{shown(file)}: a row has more fields than the header line")
        if column not in plain and not re.fullmatch(r"(image|table):.+", column):
            raise UsageError(f"{shown(file)}: unknown column {column!r}{nearest(column, COLUMNS)}")


def _filled(row: Row, column: str) -> bool:
    value = row.get(column)
    return value is not None and str(value).strip() != ""


def _images(file: Path, row: Row) -> dict[str, Path]:
    named = {"image" if key == "image" else key.split(":", 1)[1]: key for key in row if key.split(":")[0] == "image"}
    return {name: file.parent / str(row[key]).strip() for name, key in named.items() if _filled(row, key)}


def _unnamed(row: Row) -> str:
    """What a case without id is called until its content is known: its path, which no other has."""
    first = next((str(row[key]) for key in row if key.split(":")[0] == "image" and _filled(row, key)), "")
    return "_".join(part for part in Path(first.strip()).parts if part not in ("/", "..", "."))


def _case(file: Path, name: str, row: Row, classes: tuple[str, ...]) -> Case:
    def text(column: str) -> str | None:
        return str(row[column]).strip() if _filled(row, column) else None

    label = text("label")
    return Case(
        id=name,
        images=dict(_images(file, row)),
        label=None if label is None else file.parent / label,
        target=_target(row.get("target"), classes) if _filled(row, "target") else None,
        boxes=tuple(Box(tuple(b["low"]), tuple(b["high"]), int(b["label"])) for b in row.get("boxes") or ()),
        table={
            key.split(":", 1)[1]: _number(row[key]) for key in row if key.startswith("table:") and _filled(row, key)
        },
        subject=text("subject"),
        site=text("site"),
        split=text("split"),
        private=not _filled(row, "id"),
    )


def _number(value: Any) -> float | str:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value).strip()


def _parts(value: Any) -> list[str]:
    return [str(part).strip() for part in value] if isinstance(value, list) else str(value).strip().split(";")


def _class_names(rows: list[Row]) -> tuple[str, ...]:
    """The class names, sorted, where targets are words; empty where they are numbers."""
    words = {str(row["target"]).strip() for row in rows if _filled(row, "target")}
    numbers = all(isinstance(_number(part), float) for word in words for part in _parts(word))
    if numbers or any(isinstance(row.get("target"), list) for row in rows):
        return ()
    return tuple(sorted(words))


def _target(value: Any, classes: tuple[str, ...]) -> int | tuple[float, ...]:
    parts = _parts(value)
    if classes:
        return classes.index(str(value).strip())
    if len(parts) == 1 and not isinstance(value, list) and re.fullmatch(r"\d+", parts[0]):
        return int(parts[0])
    return tuple(float(part) for part in parts)


def _numbered(targets: list[Any], several: bool) -> tuple[str, ...]:
    if several:
        return tuple(map(str, range(len(targets[0]))))
    whole = [target for target in targets if isinstance(target, int)]
    return tuple(map(str, range(max(whole) + 1))) if whole else ()
