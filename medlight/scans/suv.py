"""Standardised uptake values of PET images, normalised by body weight.

The factor follows the vendor-neutral pseudo-code of the Quantitative Imaging Biomarkers Alliance (FDG-PET/CT profile,
appendix G; https://qibawiki.rsna.org/index.php/Standardized_Uptake_Value_(SUV)), with every unit checked.
"""

from __future__ import annotations

import datetime
import math
from typing import Any

from pydicom import Dataset
from pydicom.valuerep import DA, DT, TM

from medlight.errors import MedlightError

# Plausible values: a neonate to the heaviest patient on a table; a dose below 10 kBq is one given in MBq, and one above
# 100 GBq is none; a scan a week after the injection has a wrong date.
_KILOGRAMS = (0.3, 500.0)
_BECQUERELS = (1e4, 1e11)
_LONGEST_WAIT = 7 * 24 * 3600.0
_HALF_LIVES = (60.0, 1e6)
# Half-lives in seconds by code (SCT and SRT of PS3.16 CID 4020), for a header that gives minutes or hours (NUBASE2020).
_SECONDS = {
    ("77004003", "C-111A1"): 6584,  # 18F
    ("40565003", "C-105A1"): 1222,  # 11C
    ("21576001", "C-107A1"): 598,  # 13N
    ("129504001", "C-B1038"): 122,  # 15O
    ("35337001", "C-131A3"): 4071,  # 68Ga
    ("79197006", "C-159A2"): 75.5,  # 82Rb
    ("3932008", "C-127A2"): 45721,  # 64Cu
    ("63360001", "C-168A4"): 282276,  # 89Zr
    ("40937006", "C-114A5"): 360815,  # 124I
}


def suv_factor(dataset: Dataset) -> tuple[float, str]:
    """Return what real values (rescaled) are multiplied with to give SUV by body weight (g/ml), and how it was found.

    dataset: the whole header of the slice that was acquired first. Raises MedlightError, without a file's name, where
    something it needs is missing or its unit is implausible.
    """
    units = str(dataset.get("Units") or "").strip().upper()
    match units:
        case "GML":
            return 1.0, "the values are SUV (g/ml) already"
        case "BQML":
            return _from_becquerels(dataset)
        case "CNTS":
            return _from_counts(dataset)
    raise MedlightError(f"SUV needs Units (0054,1001) of BQML, CNTS or GML, and they are {units[:16] or 'missing'}")


def _from_counts(dataset: Dataset) -> tuple[float, str]:
    """Philips stores counts and, in private tags, the factor to SUV or to Bq/ml."""
    if str(dataset.get((0x7053, 0x0010), _Nothing).value).strip() == "Philips PET Private Group":
        suv = _private(dataset, 0x1000)
        if suv > 0:
            return suv, "counts by Philips' SUV scale factor (7053,1000)"
        activity = _private(dataset, 0x1009)
        if activity > 0:
            factor, note = _from_becquerels(dataset)
            return activity * factor, f"counts by Philips' activity factor (7053,1009); {note}"
    raise MedlightError("SUV from counts (Units CNTS) needs Philips' factors (7053,1000) or (7053,1009)")


class _Nothing:
    value = ""


def _private(dataset: Dataset, element: int) -> float:
    value = dataset.get((0x7053, element), _Nothing).value
    if isinstance(value, bytes):  # a private tag of unknown type: a decimal string all the same
        value = value.decode("ascii", "replace").strip(" \0")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _from_becquerels(dataset: Dataset) -> tuple[float, str]:
    corrected = str(dataset.get("CorrectedImage") or "").upper()
    if "ATTN" not in corrected or "DECY" not in corrected:
        raise MedlightError("SUV needs CorrectedImage (0028,0051) with ATTN and DECY")
    weight = _within(dataset, "PatientWeight", _KILOGRAMS, "kg")
    info = _radiopharmaceutical(dataset)
    dose = _within(info, "RadionuclideTotalDose", _BECQUERELS, "Bq")
    correction = str(dataset.get("DecayCorrection") or "").strip().upper()
    match correction:
        case "ADMIN":
            decayed = dose
        case "START":
            half_life = _half_life(info)
            decayed = dose * 2 ** (-_wait(dataset, info) / half_life)
        case _:
            raise MedlightError(
                f"SUV needs DecayCorrection (0054,1102) of START or ADMIN, not {correction[:16] or 'none'}"
            )
    return weight * 1000 / decayed, f"Bq/ml by body weight and dose, decay corrected to {correction}"


def _radiopharmaceutical(dataset: Dataset) -> Dataset:
    items = dataset.get("RadiopharmaceuticalInformationSequence")
    if not items:
        raise MedlightError("SUV needs RadiopharmaceuticalInformationSequence (0054,0016), and it is missing")
    return items[0]


def _within(dataset: Dataset, keyword: str, limits: tuple[float, float], unit: str) -> float:
    try:
        value = float(dataset.get(keyword))
    except Exception:
        raise MedlightError(f"SUV needs {keyword} in {unit}, and it is missing or no number") from None
    if not limits[0] <= value <= limits[1]:
        raise MedlightError(f"SUV needs {keyword} in {unit}, and its value can't be that; correct the header")
    return value


def _half_life(info: Dataset) -> float:
    """Of the nuclide, in seconds; within a twentieth of what is known of it where it is coded."""
    value = _within(info, "RadionuclideHalfLife", _HALF_LIVES, "s")
    items = info.get("RadionuclideCodeSequence")
    code = str(items[0].get("CodeValue") or "").strip() if items else ""
    known = next((seconds for codes, seconds in _SECONDS.items() if code in codes), value)
    if abs(value - known) > 0.05 * known:
        raise MedlightError("SUV needs RadionuclideHalfLife in s, and its nuclide has another; correct the header")
    return value


def _wait(dataset: Dataset, info: Dataset) -> float:
    """Seconds from the injection to the time that the values are decay corrected to."""
    scan = _scan_time(dataset)
    injected = _moment(info, "RadiopharmaceuticalStartDateTime")
    if injected is None:
        time = _time(info.get("RadiopharmaceuticalStartTime"))
        if time is None:
            raise MedlightError("SUV needs the time of injection (0018,1078 or 0018,1072), and it is missing")
        injected = datetime.datetime.combine(scan.date(), time)
        if injected > scan:  # injected before midnight
            injected -= datetime.timedelta(days=1)
    seconds = (scan - injected).total_seconds()
    if not 0 <= seconds <= _LONGEST_WAIT:
        raise MedlightError("SUV needs an injection before the scan and within a week of it; correct the times")
    return seconds


def _scan_time(dataset: Dataset) -> datetime.datetime:
    """When the scan began: the series' time; of a derived series, whose time is later, GE's or the acquisition's."""
    series = _together(dataset, "Series")
    acquired = _together(dataset, "Acquisition")
    if series is not None and (acquired is None or series <= acquired):
        return series
    if "GEMS_PETD_01" in str(dataset.get((0x0009, 0x0010), _Nothing).value):
        ge = _parsed(dataset.get((0x0009, 0x100D), _Nothing).value)
        if ge is not None:
            return ge
    if acquired is None:
        raise MedlightError("SUV needs the date and time of the series or of the acquisition, and they are missing")
    return acquired


def _together(dataset: Dataset, prefix: str) -> datetime.datetime | None:
    try:
        date = DA(str(dataset.get(f"{prefix}Date") or ""))
    except Exception:
        return None
    time = _time(dataset.get(f"{prefix}Time"))
    return datetime.datetime.combine(date, time) if date is not None and time is not None else None


def _time(value: Any) -> datetime.time | None:
    try:
        time = TM(str(value or ""))
    except Exception:
        return None
    return datetime.time(time.hour, time.minute, time.second, time.microsecond) if time is not None else None


def _moment(dataset: Dataset, keyword: str) -> datetime.datetime | None:
    return _parsed(dataset.get(keyword))


def _parsed(value: Any) -> datetime.datetime | None:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    try:
        moment = DT(text.strip(" \0"))
    except Exception:
        return None
    return moment.replace(tzinfo=None) if moment is not None else None  # series times are in the same local time
