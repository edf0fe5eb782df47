"""Rows of per-case results, brought together over the processes of a fit."""

from __future__ import annotations

from typing import Any

from torch import distributed

Row = dict[str, Any]


def gather(rows: list[Row]) -> list[Row]:
    """Return the rows of every rank, in the order of ``case_id``, each case once; the same list on all ranks."""
    parts = [rows]
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        parts = [[] for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(parts, rows)
    found = {row["case_id"]: row for part in parts for row in part}
    return [found[key] for key in sorted(found)]
