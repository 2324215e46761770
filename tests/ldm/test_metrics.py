"""Distances between images against another library."""

import torch
from kornia.metrics import psnr as kornia_psnr
from kornia.metrics import ssim as kornia_ssim

from ldm.metrics import psnr, ssim


def test_psnr_is_by_picture_with_peak_one() -> None:
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2)), torch.tensor([20.0]))
    y = (x + 0.1 * torch.arange(1, 4).view(3, 1, 1, 1)).clamp(-1, 1)
    by_kornia = torch.stack([kornia_psnr(a / 2 + 0.5, b / 2 + 0.5, 1.0) for a, b in zip(x, y, strict=True)])
    assert torch.allclose(psnr(x, y), by_kornia, atol=1e-4) and (psnr(x, x) == 100).all()


def test_ssim_agrees_with_another_library_and_gives_one_for_one_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8, generator=generator), 64, mode="bilinear") * 2 - 1
    y = (x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
    by_kornia = kornia_ssim(x / 2 + 0.5, y / 2 + 0.5, 11).mean((1, 2, 3))
    assert ssim(x, y).shape == (2,) and torch.allclose(ssim(x, y), by_kornia, atol=1e-5)
    assert torch.allclose(ssim(x, x), torch.ones(2)) and ssim(x[:1], y[:1]).shape == (1,)
    assert torch.allclose(ssim(x[:1], y[:1]), ssim(x, y)[:1], atol=1e-6)
