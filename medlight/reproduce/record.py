"""A study's own MLflow run: parent of its runs, with the results in it."""

from __future__ import annotations

import json
from pathlib import Path

from medlight.reproduce.expected import FILE, Budget, Study
from medlight.reproduce.markdown import markdown
from medlight.reproduce.page import page
from medlight.reproduce.report import Results
from medlight.tracking import store
from medlight.tracking.logger import MLflowLogger

REPORTS = Path("mlruns") / "reproductions"


class StudyRun:
    """The run of kind ``study``; one for each study and budget, gone on with by every start."""

    def __init__(self, study: Study, budget: Budget) -> None:
        found = [run for run in store.runs_of(study.name, "study") if run.data.tags.get("medlight.budget") == budget]
        before = found[0].info.run_id if found else None
        self.study, self.budget = study, budget
        name = study.name if budget == "full" else f"{study.name}-quick"
        self.logger = MLflowLogger(study.name, name, kind="study", tags={"medlight.budget": budget}, run_id=before)
        self.run_id = self.logger.run_id
        self.logger.set_tags({"medlight.state": "running", "medlight.reason": ""})
        if before is None:
            self.logger.log_params({"seeds": study.seeds, "paper": study.paper})
        self.logger.log_text((study.folder / FILE).read_text(encoding="utf-8"), FILE)

    def stopped(self, reason: str) -> None:
        """Close it after an interruption; call it where the exception is handled, which tells its status."""
        self.logger.set_tags({"medlight.state": "stopped", "medlight.reason": reason})
        self.logger.finalize("failed")

    def finish(self, results: Results) -> list[Path]:
        """Write the results; returns the files, the page last.

        Those of a full budget are written beside expected.yaml too, unless what lies there is of more finished runs of
        the same files: results of hours on another machine do not make way for a first seed here.
        """
        texts = {
            "results.json": json.dumps(results, indent=1, ensure_ascii=False) + "\n",
            "results.md": markdown(results),
            "results.html": page(results),
        }
        local = REPORTS / self.logger.name
        written = _write(local, texts)
        if self.budget == "full" and not _fewer(results, self.study.folder / "results.json"):
            committed = _write(self.study.folder, {name: texts[name] for name in ("results.json", "results.md")})
            written = [*committed, local / "results.html"]
        for name, text in texts.items():
            self.logger.log_text(text, name)
        self._figures(results)
        failed = any(run["state"] == "failed" for run in results["runs"])
        self.logger.set_tags({"medlight.state": "failed" if failed else "complete"})
        self.logger.finalize("failed" if failed else "success")
        return written

    def _figures(self, results: Results) -> None:
        means = {
            f"ours/{row['variant']}/{row['metric']}": row["ours"]["mean"]
            for row in results["verdicts"]
            if "metric" in row and row["ours"]["mean"] is not None
        }
        self.logger.log_metrics(means, 0)


def _fewer(results: Results, file: Path) -> bool:
    """Whether a file has the results of more finished runs of the same study."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        finished = [sum(run["state"] == "done" for run in each["runs"]) for each in (results, kept)]
        return kept["files_digest"] == results["files_digest"] and finished[0] < finished[1]
    except (OSError, ValueError, KeyError, TypeError):  # none, or nothing that this wrote
        return False


def _write(folder: Path, texts: dict[str, str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]
