"""Comments within compressed frames are blanked, and the frames decode to the same pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames

from medlight.scans.dicom.codestream import blanked

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)


def encoded(form):
    stream = io.BytesIO()
    image = Image.fromarray(PICTURE)
    if form == "JPEG":
        exif = Image.Exif()
        exif[0x013B] = "Zyzzyva the photographer"
        image.save(stream, form, comment=b"of Zyzzyva", exif=exif, quality=90)
    else:
        image.save(stream, form, comment=b"of Zyzzyva", no_jp2=True)
    return stream.getvalue()


def decoded(frame):
    return np.asarray(Image.open(io.BytesIO(frame)))


@pytest.mark.parametrize("form", ["JPEG", "JPEG2000"])
@pytest.mark.parametrize("fragments", [1, 3])
def test_comments_go_and_pixels_stay(form, fragments):
    frames = [encoded(form), encoded(form)]
    before = encapsulate(frames, fragments_per_frame=fragments)
    after = blanked(before)
    assert b"Zyzzyva" in before
    assert b"Zyzzyva" not in after
    assert len(after) == len(before)
    for one, other in zip(frames, generate_frames(after, number_of_frames=2), strict=True):
        assert np.array_equal(decoded(one), decoded(other))


@given(st.binary(max_size=200), st.booleans())
def test_junk_is_left_as_it_is_or_as_long(data, item):
    whole = (b"\xfe\xff\x00\xe0" + len(data).to_bytes(4, "little") if item else b"") + b"\xff\xd8" + data
    assert len(blanked(whole)) == len(whole)
