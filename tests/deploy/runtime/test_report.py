"""The codes of a classification's report: one for each class, of its name alone."""

from __future__ import annotations

import pytest
from pydicom import Dataset

from medlight.deploy.runtime.report import report

TISSUES = ["colorectal adenocarcinoma epithelium", "cancer-associated stroma", "colorectal adenocarcinoma stroma"]


def codes(*names: str) -> dict[str, str]:
    """The code values of a report of these classes, by their code meaning; as a reader of the file finds them."""
    made = report({name: 1 / len(names) for name in names}, [("1.2", "1.2.3")], [])
    _, measured = Dataset.from_json(made.to_json()).ContentSequence
    found = [group.ContentSequence[0].ConceptCodeSequence[0] for group in measured.ContentSequence]
    assert len(found) == len(names)
    assert {code.CodingSchemeDesignator for code in found} == {"99MEDLIGHT"}
    return {code.CodeMeaning: code.CodeValue for code in found}


@pytest.mark.parametrize(
    "names", [TISSUES, ["benign", "Benign", "not benign"], ["type a", "type_a"], ["x" * 90, "x" * 16, "straße" * 3]]
)
def test_each_class_has_a_code_of_its_own(names: list[str]) -> None:
    found = codes(*names)
    assert set(found) == {name[:64] for name in names}
    assert len(set(found.values())) == len(names)
    assert all(0 < len(code) <= 16 and "\\" not in code and " " not in code for code in found.values())


def test_a_code_is_the_same_in_every_report_of_a_bundle() -> None:
    assert codes(*TISSUES) == codes(*reversed(TISSUES))
    assert codes(TISSUES[0], "mucus")[TISSUES[0]] == codes(*TISSUES)[TISSUES[0]]


def test_short_names_are_their_codes() -> None:
    assert codes("no finding", "finding") == {"no finding": "NO_FINDING", "finding": "FINDING"}


def test_a_backslash_makes_no_two_values_of_a_name() -> None:
    assert codes("left\\right", "other") == {"left_right": "LEFT_RIGHT", "other": "OTHER"}
