"""SUV factors against the arithmetic done by hand."""

from __future__ import annotations

import pytest
from pydicom import Dataset

from medlight.errors import MedlightError
from medlight.scans.suv import suv_factor


def _pet(**changes) -> Dataset:
    info = Dataset()
    info.RadionuclideTotalDose = "370000000"
    info.RadionuclideHalfLife = "6586.2"
    info.RadiopharmaceuticalStartTime = "090000.00"
    dataset = Dataset()
    dataset.Units = "BQML"
    dataset.CorrectedImage = ["ATTN", "DECY", "SCAT"]
    dataset.DecayCorrection = "START"
    dataset.PatientWeight = "70"
    dataset.SeriesDate = dataset.AcquisitionDate = "20260102"
    dataset.SeriesTime = "100000"
    dataset.AcquisitionTime = "100530"
    dataset.RadiopharmaceuticalInformationSequence = [info]
    for name, value in changes.items():
        holder = info if name in info or name == "RadiopharmaceuticalStartDateTime" else dataset
        if value is None:
            delattr(holder, name)
        else:
            setattr(holder, name, value)
    return dataset


def test_body_weight_and_decay_from_injection_to_scan():
    expected = 70_000 / (370e6 * 0.5 ** (3600 / 6586.2))
    factor, note = suv_factor(_pet())
    assert factor == pytest.approx(expected, rel=1e-12)
    assert "START" in note


def test_a_dose_corrected_to_administration_does_not_decay():
    assert suv_factor(_pet(DecayCorrection="ADMIN"))[0] == pytest.approx(70_000 / 370e6)


def test_injection_before_midnight_and_with_a_date_of_its_own():
    overnight = _pet(RadiopharmaceuticalStartTime="230000", SeriesTime="003000", AcquisitionTime="003500")
    assert suv_factor(overnight)[0] == pytest.approx(70_000 / (370e6 * 0.5 ** (5400 / 6586.2)))
    dated = _pet(RadiopharmaceuticalStartDateTime="20260102083000.00+0100")
    assert suv_factor(dated)[0] == pytest.approx(70_000 / (370e6 * 0.5 ** (5400 / 6586.2)))


def test_a_series_made_later_takes_the_acquisitions_time():
    derived = _pet(SeriesTime="150000")
    assert suv_factor(derived)[0] == pytest.approx(70_000 / (370e6 * 0.5 ** (3930 / 6586.2)))


def test_values_that_are_suv_already_and_philips_counts():
    assert suv_factor(_pet(Units="GML"))[0] == 1
    philips = _pet(Units="CNTS")
    philips.add_new((0x7053, 0x0010), "LO", "Philips PET Private Group")
    philips.add_new((0x7053, 0x1000), "DS", "0.000551")
    assert suv_factor(philips)[0] == pytest.approx(0.000551)
    philips[0x7053, 0x1000].value = "0"
    philips.add_new((0x7053, 0x1009), "DS", "2.5")
    assert suv_factor(philips)[0] == pytest.approx(2.5 * suv_factor(_pet())[0])


def test_a_half_life_in_minutes_is_told_by_its_nuclide():
    dataset = _pet(RadionuclideHalfLife="109.77")  # a plausible number of seconds, for 15O
    nuclide = Dataset()
    nuclide.CodeValue, nuclide.CodingSchemeDesignator = "C-111A1", "SRT"
    info = dataset.RadiopharmaceuticalInformationSequence[0]
    info.RadionuclideCodeSequence = [nuclide]
    with pytest.raises(MedlightError, match="RadionuclideHalfLife in s"):
        suv_factor(dataset)
    info.RadionuclideHalfLife = "6586.2"
    assert suv_factor(dataset)[0] == suv_factor(_pet())[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"Units": "PROPCPS"}, "Units"),
        ({"Units": "CNTS"}, "7053"),
        ({"PatientWeight": None}, "PatientWeight"),
        ({"PatientWeight": "70000"}, "PatientWeight in kg"),
        ({"RadionuclideTotalDose": "370"}, "RadionuclideTotalDose in Bq"),
        ({"RadionuclideHalfLife": "1.83"}, "RadionuclideHalfLife in s"),
        ({"CorrectedImage": ["ATTN"]}, "CorrectedImage"),
        ({"DecayCorrection": "NONE"}, "DecayCorrection"),
        ({"RadiopharmaceuticalInformationSequence": None}, "0054,0016"),
        ({"RadiopharmaceuticalStartTime": None}, "injection"),
        ({"RadiopharmaceuticalStartDateTime": "20250101090000"}, "week"),
        ({"SeriesTime": None, "AcquisitionTime": None}, "time"),
    ],
)
def test_what_is_missing_or_in_another_unit_is_named(changes, named):
    with pytest.raises(MedlightError, match=named):
        suv_factor(_pet(**changes))
