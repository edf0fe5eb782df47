"""What a run recorded, read back so that it can be run again."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medlight.config import Config, load_yaml
from medlight.errors import MedlightError, UsageError
from medlight.prepare import Case, Split, Splitter
from medlight.prepare.contents import identified
from medlight.tracking import store

WEIGHTS = "medlight.pretrained_sha256"  # the tag of a run that began with weights
_MANIFEST = re.compile(r"manifest-resumed(?:-(\d+))?\.json")  # once they had no number, and the last was kept
_MENDS = {
    "running": "wait for its end",
    "stopped": "medlight fit --resume goes on with it",
    "failed": "medlight fit starts it anew",
    "pruned": "a run of the same configuration would go on to its end",
}


@dataclass(frozen=True)
class Recorded:
    """A finished run: its configuration, its manifest (``resumes``: one more for each resume), uncommitted changes."""

    run_id: str
    name: str
    study: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    config: Config
    manifest: Mapping[str, Any]
    resumes: Sequence[Mapping[str, Any]]
    diff: str

    @property
    def tested(self) -> bool:
        """Whether it has test figures."""
        return any(name.startswith("test/") for name in self.metrics)


def read(text: str) -> Recorded:
    """Find a run by id, prefix or name, and read what it recorded.

    Raises: UsageError for a run that can't be run again, with the reason.
    """
    run = store.find_run(text)
    run_id, tags = str(run.info.run_id), dict(run.data.tags)
    _refuse(run_id, tags, str(run.info.status))
    config = _file(run_id, "config.yaml")
    found = manifests(run_id)
    if config is None or not found:
        missing = "config.yaml" if config is None else "manifest.json"
        raise UsageError(f"run {run_id[:12]}: has no {missing}, from which it could be run again")
    diff = _file(run_id, "uncommitted.diff")
    content, *resumes = found
    if content["devices"]["world_size"] > 1:
        ranks = content["devices"]["world_size"]
        raise UsageError(f"run {run_id[:12]}: was made by {ranks} processes; only a run of one can be run again")
    return Recorded(
        run_id=run_id,
        name=tags.get("medlight.name") or run.info.run_name or run_id[:8],
        study=tags.get("medlight.study", "medlight"),
        tags=tags,
        metrics=dict(run.data.metrics),
        config=load_yaml(config),
        manifest=content,
        resumes=resumes,
        diff=diff.read_text() if diff else "",
    )


def manifests(run_id: str) -> list[dict[str, Any]]:
    """Return what a run was made with: at its start, and each time that it was resumed; empty if that isn't known.

    Raises: MedlightError where one of them can't be fetched.
    """
    with store.reached():
        names = [str(file.path) for file in store.client().list_artifacts(run_id)]
    times = {int(match[1] or 0): match[0] for match in map(_MANIFEST.fullmatch, names) if match}
    if "manifest.json" not in names:
        return []
    files = ["manifest.json", *(times[time] for time in sorted(times))]
    return [json.loads(store.artifact(run_id, file).read_text()) for file in files]


def _refuse(run_id: str, tags: Mapping[str, str], status: str) -> None:
    kind = tags.get("medlight.kind")
    if kind not in ("fit", "trial"):
        what = f"is no fit but {kind!r}" if kind else "was not made by medlight"
        raise UsageError(f"run {run_id[:12]}: {what}; name a fit or one of a sweep's trials")
    state = tags.get("medlight.state") or {"FINISHED": "complete"}.get(status, status.lower())
    if state != "complete":
        mend = _MENDS.get(state, "medlight fit starts it anew")
        raise UsageError(f"run {run_id[:12]}: is {state}, there is no end to compare with; {mend}")


def _file(run_id: str, name: str) -> Path | None:
    try:
        return store.artifact(run_id, name)
    except MedlightError:
        return None


class RecordedSplit:
    """The split that a run recorded, for the cases of today, and which of them kept their label.

    recorded: names by part (train, val, test), as the run calls the cases. own: the configuration's own splitter,
    which is only asked for comparison. memory: the store's digests, as private cases are called by their content.
    labelled: names of the training cases that kept their label; None for a run that hid none.
    After `assign`, ``today`` is what ``own`` says, in the names of runs, or why it says nothing; after `keep_labels`
    ``labelled_today`` is what the data module itself would choose, or None where it can't.
    """

    def __init__(
        self,
        recorded: Mapping[str, Sequence[str]],
        own: Splitter,
        memory: Path,
        labelled: Sequence[str] | None = None,
    ) -> None:
        self.recorded, self.own, self.memory, self.labelled = recorded, own, memory, labelled
        self.today: dict[str, list[str]] | str = "not asked"
        self.labelled_today: list[str] | None = None
        self._called: dict[str, str] = {}

    def assign(self, cases: Sequence[Case], skipped: Collection[str] = ()) -> Split:
        """Return the recorded split without the cases that are gone."""
        names = self._called = self._names(cases)
        ids = {name: case_id for case_id, name in names.items()}
        try:
            own = self.own.assign(cases, skipped).to_dict()
            self.today = {part: [names[case_id] for case_id in members] for part, members in own.items()}
        except MedlightError as error:
            self.today = str(error)
        parts = {part: tuple(ids[name] for name in members if name in ids) for part, members in self.recorded.items()}
        if not parts["train"]:
            raise UsageError("data: none of the run's training cases is there any more")
        return Split(**parts)

    def keep_labels(self, own: Callable[[], set[str]]) -> set[str]:
        """Return the ids of the cases that kept their label, without those that are gone (see `FewLabelsDataModule`).

        own: gives what the data module itself would choose.
        """
        if self.labelled is None:
            return own()
        try:
            self.labelled_today = sorted(self._called[case_id] for case_id in own())
        except MedlightError:  # it names a case, by an id that may be a file's
            self.labelled_today = None
        kept = {case_id for case_id, name in self._called.items() if name in set(self.labelled)}
        if not kept:
            raise UsageError("data: none of the run's labelled cases is there any more")
        return kept

    def _names(self, cases: Sequence[Case]) -> dict[str, str]:
        """What runs call the cases (see `ScanDataModule.recorded`)."""
        private = [case for case in cases if case.private]
        known, _ = identified(private, self.memory) if private else ([], [])
        digests = {case.id: digest for case, digest in known}
        names, copies = {}, Counter[str]()
        for case in cases:
            name = f"case-{digests[case.id][:10]}" if case.id in digests else case.id
            names[case.id] = f"{name}+{copies[name]}" if copies[name] else name
            copies[name] += 1
        return names
