from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medlight.scans import values
from medlight.scans.values import values_of

KINDS = st.sampled_from([np.uint8, np.int16, np.uint16, np.int64, np.float32, bool])


@given(data=st.data(), kind=KINDS, block=st.integers(1, 40), turned=st.booleans())
def test_they_are_numpys(data, kind, block, turned) -> None:
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=7))
    few = st.integers(0, 1) if kind is bool else st.integers(0, 5)
    array = data.draw(arrays.arrays(kind, shape, elements=few))
    array = array.T if turned else array
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "_BLOCK", block)
        found = values_of(array)
    np.testing.assert_array_equal(found, np.unique(array))
    assert found.dtype == array.dtype


def test_views_with_steps() -> None:
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    np.testing.assert_array_equal(values_of(array[::2, :, ::-2]), np.unique(array[::2, :, ::-2]))
