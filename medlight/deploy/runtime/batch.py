"""Many scans, one after the other: one that can't be predicted is named, and does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medlight.deploy.runtime.checked import named
from medlight.deploy.runtime.files import predict_item
from medlight.deploy.runtime.fit_for import checks_modality
from medlight.deploy.runtime.journal import Item, Journal, Result
from medlight.deploy.runtime.predictor import Predictor
from medlight.deploy.runtime.summary import write_summary
from medlight.errors import MedlightError, fault


@dataclass
class Batch:
    """Runs a bundle on items, into one folder.

    items: that were run. results: as `predict_item` returns them. failed: items with what is wrong, in one line for a
    person. keeps: an item is failed whose files would replace those of another one, even of an earlier run (a drop
    folder may hold ``scan.nii`` and ``scan.nii.gz``, and which of them comes first is left to chance).
    """

    predictor: Predictor
    folder: Path
    probabilities: bool = False
    force: bool = False
    keeps: bool = False
    items: list[Item] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    failed: list[tuple[Item, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._journal = Journal(self.folder, self.keeps)

    def run(self, items: Sequence[Item], progress: Callable[[float, float], None] = lambda done, total: None) -> None:
        """Predict items; ``progress`` is called with the items done and their total."""
        for number, item in enumerate(items):

            def within(done: int, total: int, start: int = number) -> None:
                progress(start + done / total, len(items))

            self.add(item, within)
            progress(number + 1, len(items))

    def add(self, item: Item, progress: Callable[[int, int], None] | None = None) -> Result | None:
        """Predict one item; returns its result, None where it failed."""
        self.items.append(item)
        if item.fault:
            self.failed.append((item, item.fault))
            return None
        options: dict[str, Any] = {"probabilities": self.probabilities, "force": self.force, "progress": progress}
        try:
            self.results.append(predict_item(self.predictor, item, self._journal, **options))
            return self.results[-1]
        except (MedlightError, OSError) as error:
            reason = " ".join(str(error).split())
        except MemoryError:
            reason = f"{named(item.source)}: needs more memory than there is"
        except Exception as error:
            reason = f"{named(item.source)}: {fault(error)}"
        self.failed.append((item, reason))
        return None

    @property
    def untold(self) -> list[Result]:
        """Results whose modality was not compared with the bundle's; of what was predicted before it may be unknown."""
        return [result for result in self.results if not result.get("modality_checked")]

    @property
    def content(self) -> dict[str, Any]:
        """All there is to tell, as plain values and without the names of files that failed: those may be patients'."""
        return {
            "bundle": str(self.predictor.bundle.root),
            "runtime": self.predictor.runtime,
            "modality_checked": checks_modality(self.predictor.bundle.data) and not self.untold,
            "cases": self.results,
            "failed": [{"name": item.name, "error": item.nameless(error)} for item, error in self.failed],
        }

    def summarise(self) -> None:
        """Write the summary of all that was run."""
        write_summary(self.folder, self.content)
