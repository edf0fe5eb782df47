"""Decoders that die or never end take nothing with them."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import data_store
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames

from medlight.scans.dicom import isolated, pixels

FILE = Path(data_store.__file__).parent / "data" / "JPEG-LL.dcm"  # JPEG lossless, which GDCM alone decodes


@pytest.fixture
def fresh(monkeypatch):
    """A pool of its own."""
    monkeypatch.setattr(isolated, "_pool", None)
    yield
    if isolated._pool is not None:
        isolated._pool.close()


@pytest.fixture(scope="module")
def frame() -> tuple[bytes, pixels.Layout]:
    dataset = pydicom.dcmread(FILE)
    return next(generate_frames(dataset.PixelData, number_of_frames=1)), pixels.layout(dataset)


def test_what_comes_back_is_what_this_process_decodes(fresh, frame):
    expected = pixels.decoded(*frame)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: isolated.decoded(*frame), range(8)):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
    assert 1 <= len(isolated._pool.idle) <= (os.cpu_count() or 1)


def test_a_decoder_that_dies_is_named_and_the_next_frame_is_decoded(fresh, frame, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(isolated, "_CODE", "import os; os.write(1, b'r'); os.read(0, 1); os.abort()")
        with pytest.raises(ValueError, match="brings its decoder down"):
            isolated.decoded(*frame)
    assert isolated.decoded(*frame).shape == (1024, 256)
    isolated._pool.idle[0].process.kill()  # by somebody else, while it waits
    isolated._pool.idle[0].process.wait()
    assert isolated.decoded(*frame).shape == (1024, 256)


def test_a_decoder_that_can_not_start_is_named(fresh, frame, monkeypatch):
    monkeypatch.setattr(isolated, "_CODE", "raise SystemExit(1)")
    with pytest.raises(ValueError, match="can't start"):
        isolated.decoded(*frame)


def test_a_decoder_that_never_ends_is_ended(fresh, frame, monkeypatch):
    monkeypatch.setattr(isolated, "_CODE", "import os, time; os.write(1, b'r'); time.sleep(60)")
    monkeypatch.setattr(isolated, "_SECONDS", 0.2)
    monkeypatch.setattr(isolated, "_SECONDS_A_MEGAPIXEL", 0.0)
    start = time.monotonic()
    with pytest.raises(ValueError, match="longer than"):
        isolated.decoded(*frame)
    assert time.monotonic() - start < 20


def test_broken_frames_of_gdcm_bring_down_nothing(fresh, frame):
    rng = np.random.default_rng(5)
    part, layout = frame
    outcomes = set()
    for _ in range(30):
        data = bytearray(part)
        for place in rng.integers(2, 300, 4):
            data[place] = rng.integers(256)
        try:
            isolated.decoded(bytes(data), layout)
            outcomes.add("decoded")
        except ValueError as error:
            outcomes.add(str(error))
    assert any("brings its decoder down" in outcome for outcome in outcomes)
