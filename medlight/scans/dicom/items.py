"""Sequences and coded terms of a data set, looked at with care."""

from __future__ import annotations

from typing import Any

from pydicom.dataelem import RawDataElement

from medlight.scans.dicom.elements import items_in

_MOST_ITEMS = 1_000_000  # at all depths: those of 80,000 frames; each takes 1.5 KiB in pydicom


def items_of(dataset: Any, keyword: str) -> list[Any]:
    """Return the items of a sequence; none where it is absent or no sequence. Raises ValueError for absurdly many."""
    element = dataset.get_item(keyword) if keyword in dataset else None
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
        if items_in(element.value) > _MOST_ITEMS:
            raise ValueError(f"{keyword} has absurdly many items")
        element = dataset[keyword]
    return list(element.value or ()) if element is not None and element.VR == "SQ" else []


def first_of(keyword: str, *places: Any) -> Any:
    """Return the item of a sequence in the first place that has it, None where none does.

    Of functional groups (PS3.3 C.7.6.16), a frame's own come before what all frames share.
    """
    for place in places:
        for item in items_of(place, keyword) if place is not None else ():
            return item
    return None


def code_of(item: Any) -> tuple[str, str, str] | None:
    """Return the coded term of an item of a code sequence (PS3.3 8.8): value, scheme, meaning; None where absent."""
    if item is None:
        return None
    value = next((str(item.get(key)) for key in ("CodeValue", "LongCodeValue", "URNCodeValue") if item.get(key)), "")
    return value, str(item.get("CodingSchemeDesignator", "") or ""), str(item.get("CodeMeaning", "") or "")
