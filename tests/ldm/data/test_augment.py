"""Random changes of pictures stay within their bounds and leave alone what they should."""

import math

import torch

from ldm.data.augment import add_noise, move, recolour, soften


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_moves_stay_within_their_bounds() -> None:
    axis = (torch.arange(32) + 0.5) / 16 - 1
    coordinates = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flip(0)  # x, y of every pixel
    images = torch.cat([coordinates, torch.ones(1, 32, 32)])[None].repeat(300, 1, 1, 1)
    moved = move(images, generator(), shift=0.1, scale=(0.8, 1.1), degrees=10)
    assert torch.allclose(moved[:, 2], torch.ones(300, 32, 32), atol=1e-6)  # a constant stays one
    centre = moved[:, :2, 15:17, 15:17].mean((2, 3))
    assert 0.18 < centre.abs().max() <= 0.2 + 1e-6  # a tenth of the side, which is 2
    across = (moved[:, :2, 15:17, 17:19] - moved[:, :2, 15:17, 13:15]).mean((2, 3)) / 0.25
    sizes, angles = 1 / across.norm(dim=1), torch.atan2(across[:, 1], across[:, 0])
    assert 0.8 - 1e-4 <= sizes.min() < 0.82 and 1.08 < sizes.max() <= 1.1 + 1e-4
    assert math.radians(9.5) < angles.abs().max() <= math.radians(10) + 1e-4


def test_colours_keep_their_range_and_grey_stays_grey() -> None:
    images = torch.rand(50, 3, 8, 8, generator=generator()) * 2 - 1
    images[:, :, 0] = images[:, :1, 0]  # a line of grey pixels
    changed = recolour(images, generator(1), brightness=0.2, contrast=0.3, saturation=0.4)
    assert changed.abs().max() <= 1 and not torch.equal(changed, images)
    assert torch.allclose(changed[:, 0, 0], changed[:, 1, 0], atol=1e-5)
    assert torch.allclose(recolour(images, generator(), 0, 0, 0), images, atol=1e-6)
    flat = torch.full((200, 3, 4, 4), 0.1)  # without contrast and colour, brightness alone changes
    change = (recolour(flat, generator(), 0.2, 0.3, 0.4) - flat)[:, 0, 0, 0]
    assert 0.18 < change.abs().max() <= 0.2 + 1e-6


def test_a_share_of_the_images_is_blurred() -> None:
    images = torch.rand(400, 3, 8, 8, generator=generator())
    blurred = soften(images, generator(1), share=0.4)
    changed = (blurred - images).flatten(1).abs().amax(1) > 0
    assert 0.33 < changed.float().mean() < 0.47
    assert blurred[changed].std() < images[changed].std()
    assert torch.equal(soften(images, generator(), share=0.0), images)
    flat = torch.full((3, 3, 8, 8), 0.3)
    assert torch.allclose(soften(flat, generator(), share=1.0), flat)


def test_noise_differs_in_strength_from_image_to_image() -> None:
    noisy = add_noise(torch.zeros(300, 3, 16, 16), generator(), largest=0.1)
    strength = noisy.flatten(1).std(1)
    assert strength.min() < 0.01 and 0.085 < strength.max() < 0.11
    assert abs(noisy.mean()) < 1e-3
