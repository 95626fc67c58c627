"""Rotations against complex multiplication, and what they are for: scores that depend on distance alone."""

import math

import pytest
import torch

from hasten.ops.rope import frequencies, interpolate_linear, interpolate_llama3, rotary_angles, rotate


def test_rotation_is_multiplication_by_unit_complex_numbers():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    positions = torch.tensor([0, 3, 4, 100, 101])
    frequency = frequencies(8, 10_000.0)
    found = rotate(x, rotary_angles(positions, frequency))
    turns = torch.polar(torch.ones(5, 4, dtype=torch.float64), positions[:, None] * frequency.double())
    numbers = torch.complex(x[..., :4], x[..., 4:]) * turns[:, None]
    expected = torch.cat((numbers.real, numbers.imag), dim=-1)
    # Angles are float32: at 101 radians their rounding is 4e-6.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    direction = torch.randn_like(expected)
    (mine,) = torch.autograd.grad(found, x, direction)
    (reference,) = torch.autograd.grad(expected, x, direction)
    torch.testing.assert_close(mine, reference, rtol=0, atol=2e-5)


def test_scores_depend_on_the_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).unbind()
    frequency = frequencies(16)

    def score(at: int, other: int) -> float:
        first, second = (rotary_angles(torch.tensor([p]), frequency) for p in (at, other))
        return (rotate(query, first) * rotate(key, second)).sum().item()

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(8, 3), abs=1e-3)


def test_every_row_may_have_positions_of_its_own():
    x = torch.randn(2, 4, 2, 8)
    positions = torch.tensor([[0, 1, 2, 3], [5, 6, 0, 1]])
    frequency = frequencies(8)
    together = rotate(x, rotary_angles(positions, frequency))
    for row in range(2):
        alone = rotate(x[row : row + 1], rotary_angles(positions[row], frequency))
        assert torch.equal(together[row : row + 1], alone)


def test_rotation_keeps_the_precision_of_its_input():
    angles = rotary_angles(torch.arange(3), frequencies(8))
    assert rotate(torch.randn(1, 3, 2, 8).bfloat16(), angles).dtype == torch.bfloat16
    assert angles.dtype == torch.float32


def test_linear_scaling_makes_far_positions_near():
    frequency = frequencies(8)
    stretched = rotary_angles(torch.tensor([40]), interpolate_linear(frequency, 4.0))
    torch.testing.assert_close(stretched, rotary_angles(torch.tensor([10]), frequency))


def test_llama3_scaling_slows_slow_rotations_and_keeps_fast_ones():
    """The rule written with wavelengths, as in the Llama 3.1 release, over every pair of a head of 128."""
    factor, low, high, original = 8.0, 1.0, 4.0, 8192
    frequency = frequencies(128, 500_000.0).double()
    found = interpolate_llama3(frequency, factor, low, high, original)
    kinds = set()
    for before, after in zip(frequency.tolist(), found.tolist(), strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < original / high:
            expected, kind = before, "kept"
        elif wavelength > original / low:
            expected, kind = before / factor, "slowed"
        else:
            smooth = (original / wavelength - low) / (high - low)
            expected, kind = (1 - smooth) * before / factor + smooth * before, "blended"
        kinds.add(kind)
        assert after == pytest.approx(expected, rel=1e-12)
    assert kinds == {"kept", "slowed", "blended"}
