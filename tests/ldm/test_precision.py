"""The precision `auto`: bfloat16 only where the device computes in it."""

import pytest
import torch

from ldm.precision import fastest_precision


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(False, False, "32-true"), (True, False, "bf16-mixed"), (False, True, "bf16-mixed")],
)
def test_a_processor_without_products_of_bfloat16_trains_in_float32(
    avx512: bool, amx: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fastest_precision(on_gpu=False) == expected
