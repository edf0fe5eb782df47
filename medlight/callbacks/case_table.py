"""Metrics of every case as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import lightning as L

from medlight.callbacks.best import Best
from medlight.tracking.logger import MLflowLogger

Row = dict[str, Any]


class CaseTable(L.Callback):
    """Writes ``cases.csv``: case_id, split, epoch, and the task's metrics per case.

    It holds the validation cases of the best epoch (by the task's ``monitor``), and the test cases once they were
    measured.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._best: Best | None = None
        self._score: float | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the rows of a better epoch."""
        rows = getattr(pl_module, "case_metrics", None)
        if trainer.sanity_checking or trainer.state.fn != "fit" or not rows:
            return
        if self._best is None:
            self._best = Best(pl_module.monitor, pl_module.mode)  # type: ignore[arg-type]
            self._best.score = self._score
        if self._best.monitor in trainer.callback_metrics and self._best.improved(trainer):
            self._score = self._best.score
            self._take(trainer, rows, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the rows of the test cases."""
        rows = getattr(pl_module, "case_metrics", None)
        if rows:
            self._take(trainer, rows, "test")

    def _take(self, trainer: L.Trainer, rows: Sequence[Row], split: str) -> None:
        ids = recorded_ids(trainer.datamodule)  # type: ignore[attr-defined]
        fresh = [{**row, "case_id": ids[int(row["case_id"])], "split": split} for row in rows]
        for row in fresh:
            row["epoch"] = trainer.current_epoch
        self.rows = [row for row in self.rows if row["split"] != split] + [_plain(row) for row in fresh]
        if isinstance(trainer.logger, MLflowLogger):
            trainer.logger.log_text(table(self.rows), "cases.csv")

    def state_dict(self) -> dict[str, Any]:
        """The rows, as plain values."""
        return {"rows": self.rows, "score": self._score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back; rows that are newer (a test after a fit) stay."""
        self.rows = self.rows or [dict(row) for row in state_dict["rows"]]
        self._score = state_dict["score"] if self._score is None else self._score


def recorded_ids(datamodule: Any) -> list[str]:
    """Return what a run may call the cases, in the order of ``case_ids`` (file names may be patients' names)."""
    recorded = getattr(datamodule, "recorded", {})
    return [recorded.get(case, case) for case in datamodule.case_ids]


def table(rows: Sequence[Row]) -> str:
    """Return rows as CSV text; what is not a number is left empty."""
    leading = ["case_id", "split", "epoch"]
    columns = leading + [name for name in dict.fromkeys(key for row in rows for key in row) if name not in leading]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value != value else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def _plain(row: Row) -> Row:
    """Return a row of Python's own numbers and strings."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
