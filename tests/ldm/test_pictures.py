"""Colours of 8 bits and numbers in [-1, 1]."""

import numpy as np
import torch

from ldm.pictures import from_uint8, to_uint8


def test_every_colour_comes_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    numbers = from_uint8(every)
    assert numbers.dtype == torch.float32 and numbers[[0, 255]].tolist() == [-1.0, 1.0]
    assert np.array_equal(numbers.numpy(), np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1))
    assert torch.equal(to_uint8(numbers), every) and every.tolist() == list(range(256))


def test_numbers_are_rounded_to_the_nearest_colour_and_clamped() -> None:
    assert to_uint8(torch.tensor([-1.2, -1.0, 0.001, 0.0, 1.0, 1.2])).tolist() == [0, 0, 128, 128, 255, 255]
    assert to_uint8(torch.tensor([10.4, 10.6]) / 127.5 - 1).tolist() == [10, 11]


def test_the_order_of_memory_is_kept_or_chosen() -> None:
    pixels = torch.zeros(4, 5, 3, dtype=torch.uint8).permute(2, 0, 1)
    assert from_uint8(pixels).stride() == pixels.stride()
    assert from_uint8(pixels, torch.contiguous_format).is_contiguous()
