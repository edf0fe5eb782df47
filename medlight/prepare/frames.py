"""The frames of 4D scans as samples of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medlight.prepare.case import BadCase, Case, CaseList, FileRef, FrameItem
from medlight.prepare.checks import named
from medlight.prepare.sources import CaseSource, drop_duplicates
from medlight.scans.read import format_of


class FramesAsSamples:
    """Every frame (time point, b-value, echo) of another source's 4D scans as a case of its own.

    A case ``x`` becomes ``x_t000``, ``x_t001``, ...; all are one subject, so that no split tears it apart, and have its
    target. A label map with as many frames gives each frame its own, one with a single frame is for all. Cases of one
    frame stay what they are. The headers of all scans are read whenever the cases are listed.
    source: what lists the 4D scans.
    """

    def __init__(self, source: CaseSource) -> None:
        self.source = source

    def cases(self) -> CaseList:
        """List the frames, case by case in the order of time; cases whose images differ in frames are bad."""
        listed = self.source.cases()
        bad = list(listed.bad)
        found = [frame for case in listed.cases for frame in _frames(case, bad)]
        return replace(listed, cases=drop_duplicates(found, bad), bad=bad)


def _frames(case: Case, bad: list[BadCase]) -> list[Case]:
    refs: dict[str, FileRef] = {**case.images, **({"the label": case.label} if case.label else {})}
    counts = {name: frames_of(ref) for name, ref in refs.items()}
    most = max(counts.values())
    odd = [name for name, count in counts.items() if count not in (1, most)]
    if odd or counts[next(iter(case.images))] != most:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        file = named(next(iter(case.images.values())))
        bad.append(BadCase(case.id, f"{file}: the frames don't match ({listed}); give each image as many, or one"))
        return []
    if most == 1:
        return [case]
    digits = max(3, len(str(most - 1)))
    return [_frame(case, counts, number, f"{case.id}_t{number:0{digits}d}") for number in range(most)]


def _frame(case: Case, counts: dict[str, int], number: int, name: str) -> Case:
    def one(key: str, ref: FileRef) -> FileRef:
        return FrameItem(ref, number) if counts[key] > 1 and isinstance(ref, Path) else ref

    images = {key: one(key, ref) for key, ref in case.images.items()}
    label = None if case.label is None else one("the label", case.label)
    return replace(case, id=name, images=images, label=label, subject=case.subject or case.id)


def frames_of(ref: FileRef) -> int:
    """How many frames a scan has, by its header; 1 where that can't be read (preparing it says why)."""
    if not isinstance(ref, Path):
        return 1
    match format_of(ref):
        case "dicom":
            from medlight.scans.dicom.survey import survey

            found = [stack for stack in survey([ref]).stacks if stack.kind == "image"]
            volumes = [stack for stack in found if stack.verdict.status != "not-a-volume"]
            return len(volumes[0].channels) if len(volumes) == 1 else 1
        case "raster" | None:  # a picture's channels are its colours
            return 1
        case _:
            from medlight.scans.headers import facts

            return max(1, int(facts(ref)["channels"]))
