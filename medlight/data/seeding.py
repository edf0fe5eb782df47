"""Random streams: everything drawn for a sample comes from its draw number, and nothing else is disturbed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def torch_seeded(number: int) -> Iterator[None]:
    """Seed torch's CPU generator for the block and put its state back afterwards."""
    generator = torch.default_generator  # torch.manual_seed would seed every device there may be: 50 times as slow
    state = generator.get_state()
    generator.manual_seed(number)
    try:
        yield
    finally:
        generator.set_state(state)


@contextmanager
def all_seeded(number: int) -> Iterator[None]:
    """Seed torch's, numpy's and Python's global generators for the block and put their states back afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    random.seed(number)
    np.random.seed(number % 2**32)
    try:
        with torch_seeded(number):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
