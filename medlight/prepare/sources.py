"""Sources: where cases come from. Each pairs images and labels strictly and lists what can't be used.

A source reads names and lists, no voxels. A bad pair never raises: it is in `CaseList.bad`, with one line that names
the file and the mend. A folder or list that is missing or broken as a whole is a UsageError.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from medlight.errors import UsageError
from medlight.prepare.case import ArrayItem, BadCase, Case, CaseList, Label, file_of
from medlight.prepare.folders import KINDS, scans_in
from medlight.prepare.paths import data_path
from medlight.prepare.reading import read_array
from medlight.scans import stem
from medlight.scans.files import shown


@runtime_checkable
class CaseSource(Protocol):
    """Anything that lists cases; a user's own class may stand wherever one of these does."""

    def cases(self) -> CaseList:
        """List the cases, in a fixed order."""
        ...


def labels_from(names: Mapping[Any, Any] | None) -> tuple[Label, ...]:
    """Read the schema of a label map: value to name, or ``{name, colour, code, order}``. 0 is background by default."""
    if not names:
        return ()
    try:
        labels = {int(value): _label(int(value), text) for value, text in names.items()}
    except (TypeError, ValueError, KeyError):
        raise UsageError(f"label_names: {names!r} must give a name for each voxel value, as {{1: liver}}") from None
    if min(labels) < 0:
        raise UsageError(f"label_names: {min(labels)} is no voxel value; values start at 0 (background)")
    labels.setdefault(0, Label(0, "background"))
    twice = [name for name, count in Counter(label.name for label in labels.values()).items() if count > 1]
    if twice:
        raise UsageError(f"label_names: {twice[0]!r} names two values; give each its own name")
    return tuple(labels[value] for value in sorted(labels))


def _label(value: int, text: Any) -> Label:
    if not isinstance(text, Mapping):
        return Label(value, str(text))
    code, order = text.get("code"), text.get("order")
    return Label(
        value,
        str(text["name"]),
        text.get("colour"),
        None if code is None else tuple(map(str, code)),  # type: ignore[arg-type]
        None if order is None else int(order),
    )


def drop_duplicates(cases: list[Case], bad: list[BadCase]) -> list[Case]:
    """Return the cases whose id is theirs alone; the others are added to ``bad``, one entry an id."""
    counts = Counter(case.id for case in cases)
    for name, count in counts.items():
        if count > 1:
            files = ", ".join(shown(file_of(next(iter(case.images.values())))) for case in cases if case.id == name)
            bad.append(BadCase(name, f"{files}: {count} cases have the id {name!r}; rename or remove all but one"))
    return [case for case in cases if counts[case.id] == 1]


class ImageFolders:
    """A folder of images and a folder of label maps with the same names.

    A scan is a file of any format that is read, or a sub-folder that holds a DICOM series; a label may be a DICOM-SEG
    or an RTSTRUCT, as a file or alone in a sub-folder. DICOM cases go by a digest of their content (`Store.prepare`).

    images, labels: folders, found as `data_path` says. label_names: voxel value to name (or to ``{name: ..., colour:
    "#rrggbb", code: [value, scheme, meaning], order: 1}``, of which the last says who has a voxel where segments or
    structures overlap: the higher one); where left out, the values found in the data are used. unlabelled: take images
    without a label too, as unlabelled cases.
    """

    def __init__(
        self,
        images: str,
        labels: str | None = None,
        label_names: dict[int, str | dict[str, Any]] | None = None,
        unlabelled: bool = False,
    ) -> None:
        if labels is None and not unlabelled:
            raise UsageError("ImageFolders: give the folder of labels, or set unlabelled: true")
        self.images, self.labels = images, labels
        self.label_names, self.unlabelled = labels_from(label_names), unlabelled

    def cases(self) -> CaseList:
        """List the cases by name."""
        bad: list[BadCase] = []
        images = scans_in(data_path(self.images), bad)
        if not images:
            raise UsageError(f"{self.images}: {KINDS}")
        labels = {} if self.labels is None else scans_in(data_path(self.labels), bad)
        known = {entry.id for entry in bad}
        cases = []
        for name in sorted((images.keys() | labels.keys()) - known):
            image, label = images.get(name), labels.get(name)
            if image is None:
                wanted = Path(self.images) / labels[name].name
                bad.append(BadCase(name, _no_image(labels[name], wanted)))
            elif label is None and not self.unlabelled:
                bad.append(BadCase(name, _no_label(image, Path(self.labels or "") / image.name)))
            else:
                cases.append(Case(name, {"image": image}, label, private=True))
        return CaseList(cases, bad, self.label_names)


_MEND = "or set on_bad_case: skip"


def _no_image(label: Path, wanted: Path) -> str:
    return f"{shown(label)}: a label with no image {wanted}; add the image, remove the label, {_MEND}"


def _no_label(image: Path, wanted: Path) -> str:
    return (
        f"{shown(image)}: an image with no label {wanted}; add the label, remove the image, "
        f"set unlabelled: true, {_MEND}"
    )


class Decathlon:
    """A task of the Medical Segmentation Decathlon (http://medicaldecathlon.com): its ``dataset.json``.

    path: the file, or the folder it is in. unlabelled: take the test images too, as unlabelled cases.
    """

    def __init__(self, path: str, unlabelled: bool = False) -> None:
        self.path, self.unlabelled = path, unlabelled

    def cases(self) -> CaseList:
        """List the cases in the file's order."""
        file = data_path(self.path)
        file = file / "dataset.json" if file.is_dir() else file
        listed = read_json(file)
        if not isinstance(listed, dict) or not isinstance(listed.get("training"), list):
            raise UsageError(f"{shown(file)}: no list 'training' in it; give the dataset.json of a Decathlon task")
        bad: list[BadCase] = []
        cases = [self._case(file, row, bad) for row in listed["training"]]
        if self.unlabelled:
            cases += [self._case(file, {"image": image}, bad) for image in listed.get("test", [])]
        usable = drop_duplicates([case for case in cases if case is not None], bad)
        return CaseList(usable, bad, labels_from(listed.get("labels")))

    def _case(self, file: Path, row: Any, bad: list[BadCase]) -> Case | None:
        row = {"image": row} if isinstance(row, str) else row
        if not isinstance(row, dict) or "image" not in row:
            raise UsageError(f"{shown(file)}: the entry {row!r} names no image")
        image = file.parent / row["image"]
        label = file.parent / row["label"] if row.get("label") else None
        name = stem(image)
        if not image.exists():
            bad.append(BadCase(name, f"{shown(file)} lists {row['image']}, which is not there; add it, {_MEND}"))
        elif label is not None and not label.exists():
            bad.append(BadCase(name, _no_label(image, Path(shown(label)))))
        elif label is None and not self.unlabelled:
            bad.append(BadCase(name, f"{shown(image)}: listed without a label; add it, set unlabelled: true, {_MEND}"))
        else:
            return Case(name, {"image": image}, label)
        return None


class MedMNIST:
    """A MedMNIST file (https://medmnist.com): images, targets and splits in one ``.npz``.

    2D pictures become ``(C, I, J, 1)``, the 3D sets ``(1, I, J, K)``. Ids are the split and the place in it.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def cases(self) -> CaseList:
        """List the cases, split by split."""
        file = data_path(self.path)
        labels = {split: read_array(file, f"{split}_labels") for split in ("train", "val", "test")}
        targets = {split: array.reshape(len(array), -1).tolist() for split, array in labels.items()}
        cases = [case for split, rows in targets.items() for case in self._split(file, split, rows)]
        width = len(targets["train"][0])
        classes = width if width > 1 else 1 + max(row[0] for rows in targets.values() for row in rows)
        return CaseList(cases, classes=tuple(map(str, range(classes))), multilabel=width > 1)

    def _split(self, file: Path, split: str, rows: list[list[int]]) -> list[Case]:
        return [
            Case(
                id=f"{split}_{index:05d}",
                images={"image": ArrayItem(file, f"{split}_images", index)},
                target=row[0] if len(row) == 1 else tuple(map(float, row)),
                split=split,
            )
            for index, row in enumerate(rows)
        ]


def read_json(file: Path) -> Any:
    """Read a JSON file; a broken one is a UsageError that names the line."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise UsageError(f"{shown(file)}: no such file") from None
    except ValueError as error:
        raise UsageError(f"{shown(file)}: not valid JSON: {error}") from None
