"""Stored values to real ones, against the standard's arithmetic and pydicom's."""

from __future__ import annotations

import io
from pathlib import Path

import data_store
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.data import get_testdata_file

from medlight.scans.dicom import pixels, values

PACKAGED = Path(data_store.__file__).parent / "data"


def _object(**tags) -> tuple[Dataset, pixels.Layout]:
    made = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    del made.RescaleSlope, made.RescaleIntercept
    for name, value in tags.items():
        setattr(made, name, value)
    buffer = io.BytesIO()
    made.save_as(buffer)
    buffer.seek(0)
    written = pydicom.dcmread(buffer)
    return written, pixels.layout(written)


def _lut(first: int, table: list[int], bits: int = 16) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(table) % 65536, first % 65536, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = np.array(table, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    item.ModalityLUTType = "US"
    return item


@given(
    stored=st.lists(st.integers(-32768, 32767), min_size=1, max_size=50),
    slope=st.integers(-3, 3).filter(bool),
    intercept=st.integers(-40000, 40000),
)
def test_whole_numbers_are_exact_in_the_narrowest_type(stored, slope, intercept):
    one = values.Scale(float(slope), float(intercept))
    array = np.array(stored, np.int16)
    truth = array.astype(np.int64) * slope + intercept
    kind = values.result_type([one], array.dtype, float(truth.min()), float(truth.max()))
    assert kind == (array.dtype if one.identity else kind)
    assert np.iinfo(kind).min <= truth.min() <= truth.max() <= np.iinfo(kind).max
    out = array.view(kind) if kind.itemsize == 2 else np.empty(array.shape, kind)  # in place, as a volume is
    values.to_real(array, out, one)
    np.testing.assert_array_equal(out, truth)


def test_fractions_make_single_precision():
    dataset, layout = _object(RescaleSlope="0.684", RescaleIntercept="200")
    one = values.scale(dataset, layout)
    assert values.result_type([one], np.dtype("int16"), -100, 100) == np.float32
    out = np.empty(3, np.float32)
    values.to_real(np.array([-1, 0, 1000], np.int16), out, one)
    np.testing.assert_allclose(out, [199.316, 200, 884], rtol=1e-6)


def test_a_modality_lut_is_clamped_at_both_ends():
    dataset, layout = _object(ModalityLUTSequence=[_lut(-5, [10, 20, 30, 40])])
    one = values.scale(dataset, layout)
    assert one(np.array([-32768, -6, -5, -4, -2, -1, 32767], np.int16)).tolist() == [10, 10, 10, 20, 40, 40, 40]
    shipped = pydicom.dcmread(PACKAGED / "mlut_18.dcm")
    layout = pixels.layout(shipped)
    stored = pixels.frames(shipped, layout)(0)
    theirs = pydicom.pixels.apply_modality_lut(shipped.pixel_array, shipped)
    np.testing.assert_array_equal(values.scale(shipped, layout)(stored), theirs)


def test_a_lut_that_is_cut_short_is_named():
    item = _lut(0, [1, 2, 3])
    item.LUTDescriptor = [300, 0, 16]
    with pytest.raises(ValueError, match="3 entries"):
        values.scale(*_object(ModalityLUTSequence=[item]))


def test_a_frames_own_rescale_is_taken_before_the_shared_one():
    def group(slope: str) -> Dataset:
        item, held = Dataset(), Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = slope, "-1", "HU"
        held.PixelValueTransformationSequence = [item]
        return held

    dataset, layout = _object(
        SharedFunctionalGroupsSequence=[group("5")],
        PerFrameFunctionalGroupsSequence=[group("2"), Dataset(), group("3")],
        RescaleSlope="9",
    )
    assert [values.scale(dataset, layout, index).slope for index in (0, 1, 2, 3)] == [2, 5, 3, 5]
    assert values.unit(dataset, 1) == "HU"


def test_monochrome1_is_turned_over_its_stored_range_unless_it_has_a_unit():
    dataset, layout = _object(PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11, PixelRepresentation=0)
    turned = values.scale(dataset, layout)
    assert turned(np.array([0, 1, 4095])).tolist() == [4095, 4094, 0]
    assert values.facts(dataset, layout)["turned"]
    dataset.PixelRepresentation = 1
    assert values.scale(dataset, pixels.layout(dataset))(np.array([-2048, 0, 2047])).tolist() == [2047, -1, -2048]
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "2", "10", "US"
    assert values.scale(dataset, pixels.layout(dataset))(np.array([-2048, 2047])).tolist() == [4104, -4086]
    dataset.RescaleType = "HU"
    assert values.scale(dataset, pixels.layout(dataset))(np.array([-2048, 2047])).tolist() == [-4086, 4104]
    table, layout = _object(ModalityLUTSequence=[_lut(0, [0, 100, 65535])], PhotometricInterpretation="MONOCHROME1")
    assert values.scale(table, layout)(np.array([0, 1, 2])).tolist() == [65535, 65435, 0]


@pytest.mark.parametrize(
    ("tags", "named"),
    [({"RescaleSlope": "0"}, "RescaleSlope"), ({"RescaleIntercept": "1e400"}, "RescaleIntercept")],
)
def test_junk_in_a_rescale_is_named(tags, named):
    with pytest.raises(ValueError, match=named):
        values.scale(*_object(**tags))


def test_padding_takes_the_sign_of_the_pixels():
    dataset, layout = _object()
    del dataset.PixelPaddingValue
    assert values.padding(dataset, layout) is None
    dataset.PixelPaddingValue = 63536  # -2000 by a writer that takes it for unsigned
    assert values.padding(dataset, layout) == (-2000, -2000)
    dataset.PixelPaddingRangeLimit = -1024
    assert values.padding(dataset, layout) == (-2000, -1024)


def test_windows_and_voi_luts_of_the_file():
    dataset, layout = _object(WindowCenter=["40", "-600"], WindowWidth=["400", "1500"], VOILUTFunction="SIGMOID")
    assert values.facts(dataset, layout)["windows"] == [
        {"centre": 40.0, "width": 400.0, "function": "SIGMOID"},
        {"centre": -600.0, "width": 1500.0, "function": "SIGMOID"},
    ]
    dataset, layout = _object(VOILUTSequence=[_lut(0, [0, 128, 255], 8)])
    assert values.facts(dataset, layout)["voi_luts"][0]["bits"] == 8
    assert "windows" not in values.facts(*_object(WindowCenter="40", WindowWidth="0"))


@pytest.mark.parametrize(
    "name", ["OT-PAL-8-face.dcm", "gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm", "examples_palette.dcm"]
)
def test_palettes_are_pydicoms(name):
    path = PACKAGED / name
    dataset = pydicom.dcmread(path if path.exists() else get_testdata_file(name), force=True)
    layout = pixels.layout(dataset)
    stored = pixels.frames(dataset, layout)(0)
    got = np.stack([table(stored) for table in values.palette(dataset, layout)], axis=-1)
    theirs = pydicom.pixels.apply_color_lut(stored, dataset)
    np.testing.assert_array_equal(
        got >> (8 if got.dtype == np.uint16 else 0), theirs >> (8 if theirs.dtype == np.uint16 else 0)
    )


def test_a_segmented_palette_is_expanded_as_in_the_standard():
    dataset, layout = _object(PhotometricInterpretation="PALETTE COLOR")
    # C.7.9.2: three plain values, a line of four to 13, then the first two segments once more
    words = [0, 3, 5, 6, 7, 1, 4, 15, 2, 2, 0, 0]
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [14, 0, 16])
        setattr(dataset, f"Segmented{colour}PaletteColorLookupTableData", np.array(words, "<u2").tobytes())
    red = values.palette(dataset, layout)[0]
    assert red.table.tolist() == [5, 6, 7, 9, 11, 13, 15, 5, 6, 7, 9, 11, 13, 15]


def test_a_segmented_palette_that_feeds_on_itself_ends():
    dataset, layout = _object(PhotometricInterpretation="PALETTE COLOR")
    words = [0, 1, 5, *([2, 65535, 0, 0] * 200)]
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [0, 0, 16])
        setattr(dataset, f"Segmented{colour}PaletteColorLookupTableData", np.array(words, "<u2").tobytes())
    with pytest.raises(ValueError, match="palette"):
        values.palette(dataset, layout)
