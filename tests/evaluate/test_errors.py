"""Signal to quantization noise."""

from __future__ import annotations

import math

import pytest
import torch

from qspec.evaluate.errors import sqnr_db


def test_by_hand() -> None:
    exact, rounded = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert sqnr_db(exact, rounded) == pytest.approx(10 * math.log10(25 / 0.25))


def test_a_tenth_of_the_amplitude_is_twenty_decibels() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert sqnr_db(x, x * 1.1) == pytest.approx(20, abs=1e-4)


def test_borders() -> None:
    x = torch.ones(3)
    assert sqnr_db(x, x) == math.inf
    assert sqnr_db(torch.zeros(3), torch.zeros(3)) == math.inf
    assert sqnr_db(torch.zeros(3), x) == -math.inf
    assert sqnr_db(x.half(), x.half()) == math.inf
