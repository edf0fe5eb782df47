"""All cases of a folder in two files: one for programs, one for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medlight.scans.files import replacing

UNENCODABLE = "backslashreplace"  # a file's name may be no UTF-8; so escaped, JSON gives it back as it was
JSON, CSV = "summary.json", "summary.csv"
_GROUPS = {"volumes_ml": "{} (ml)", "probabilities": "{} (probability)", "dice": "{} (Dice)"}


def write_summary(folder: Path, content: dict[str, Any]) -> None:
    """Write ``summary.json`` and ``summary.csv``.

    content: what is told of the bundle, ``cases``, each as `predict_item` returns it, and ``failed``, each with a name
    and an error. In the table a case is a row: name, status, file, a column for each label's millilitres, class's
    probability and label's Dice, warnings, and the error of those that failed.
    """
    with replacing(folder / JSON) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors=UNENCODABLE)
    with replacing(folder / CSV) as temporary:
        text = table(content["cases"], content["failed"])
        temporary.write_text(text, encoding="utf-8", errors=UNENCODABLE, newline="")


def table(cases: Sequence[dict[str, Any]], failed: Sequence[dict[str, Any]]) -> str:
    """Return the cases as CSV."""
    columns = {
        title.format(name): (group, name)
        for group, title in _GROUPS.items()
        for case in cases
        for name in case.get(group, {})
    }
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["name", "status", "file", *columns, "warnings", "error"])
    for case in cases:
        values = [case.get(group, {}).get(name) for group, name in columns.values()]
        status = "predicted with warnings" if case.get("warnings") else "predicted"
        row = [case["name"], status, next(iter(case["files"]), ""), *values, "; ".join(case.get("warnings", [])), ""]
        rows.writerow([_safe(value) for value in row])
    for case in failed:
        rows.writerow(
            [_safe(value) for value in [case["name"], "failed", "", *("" for _ in columns), "", case["error"]]]
        )
    return text.getvalue()


def _safe(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return f"'{value}"
    return "" if value is None else value
