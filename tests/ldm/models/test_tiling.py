"""Tiles: exact inside, exact everywhere for a convolution with margin, blended at seams, bounded in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import KL, VQ, randomise, unet
from torch import Tensor, nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.tiling import bytes_per_pixel, decode_tiled, encode_tiled, starts, tile_side, tile_within, tiled
from ldm.util import bytes_of, instantiate_from_config

ROOT = Path(__file__).parents[3]


@pytest.fixture
def stage() -> nn.Module:
    model = instantiate_from_config(VQ).eval().requires_grad_(False)
    randomise(model)
    return model


def picture(side: int = 48, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(1, channels, side, side + 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    ("side", "tile", "overlap", "step"), [(48, 16, 4, 2), (50, 16, 8, 2), (17, 16, 8, 1), (9, 9, 2, 1)]
)
def test_tiles_cover_everything_and_overlap_enough(side: int, tile: int, overlap: int, step: int) -> None:
    found = starts(side, tile, overlap, step)
    assert found[0] == 0 and found[-1] == max(side - tile, 0)
    assert all(begin % step == 0 for begin in found)
    assert all(0 < b - a <= tile - overlap for a, b in zip(found, found[1:], strict=False))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((32, 8, 5, 1), "at most half the tile"), ((33, 8, 4, 2), "multiples of 2"), ((32, 8, -1, 1), "at most half")],
)
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        starts(*sizes)
    with pytest.raises(ValueError, match="margin.* 3 .*overlap 4"):
        tiled(lambda x: x, picture(), 16, 4, margin=3)


def test_a_picture_that_fits_is_handed_over_whole_and_no_change_leaves_no_seams() -> None:
    x = picture()
    assert tiled(lambda part: part, x, 64, 16) is x
    assert torch.allclose(tiled(lambda part: part, x, 16, 6, margin=2), x, atol=1e-6)


def test_inside_each_tile_the_result_is_that_tiles_own(stage: nn.Module) -> None:
    latent = picture(24)
    whole = tiled(stage.decode, latent, 16, 4, 2)
    rows, columns = starts(24, 16, 4), starts(32, 16, 4)
    assert rows == [0, 8] and columns == [0, 8, 16]
    alone = stage.decode(latent[:, :, :16, :16])
    assert torch.equal(whole[:, :, :16, :16], alone[:, :, :16, :16])
    corner = stage.decode(latent[:, :, 8:, 16:])
    assert torch.equal(whole[:, :, -16:, -16:], corner[:, :, 16:, 16:])
    assert not torch.allclose(whole, stage.decode(latent), atol=1e-3)  # group norms see one tile: documented


def test_seams_are_linear_blends_of_the_two_tiles() -> None:
    x = torch.cat([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)], 3)[..., 2:14]
    blend = tiled(lambda part: part.new_full(part.shape, float(part[0, 0, 0, -1])), x[..., :12], 8, 4)
    assert blend.shape == x.shape and torch.allclose(blend, torch.ones_like(blend))
    first = tiled(lambda part: part.new_full(part.shape, float(part[0, 0, 0, 0])), x, 8, 4)
    assert torch.equal(first[0, 0, 0, :4], torch.zeros(4)) and torch.equal(first[0, 0, 0, 8:], torch.zeros(4))
    steps = tiled(lambda part: part.new_full(part.shape, float(part[..., 6:].mean() > 0.5)), x.roll(-2, 3), 8, 4)
    assert torch.allclose(steps[0, 0, 3], steps[0, 0, 0])
    numbers = iter([0.0, 1.0])
    ramp = tiled(lambda part: part.new_full(part.shape, next(numbers)), x, 8, 4)[0, 0, 0]
    assert torch.allclose(ramp, torch.tensor([0, 0, 0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1]))


@torch.no_grad()
def test_a_convolutional_network_with_margin_is_exact_everywhere() -> None:
    torch.manual_seed(0)
    up = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3, padding=1)
    )
    down = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 2, stride=2))
    x = picture(50)
    assert torch.allclose(tiled(up, x, 16, 4, 2, margin=2), up(x), atol=1e-6)
    assert torch.allclose(tiled(down, x, 16, 4, 0.5, margin=2), down(x), atol=1e-6)
    assert not torch.allclose(tiled(up, x, 16, 4, 2), up(x), atol=1e-3)


@torch.no_grad()
def test_both_kinds_of_first_stage_work_in_tiles(stage: nn.Module) -> None:
    image = picture()
    latent = encode_tiled(stage, image, 32)
    assert torch.equal(encode_tiled(stage, image, None), stage.encode(image)) and latent.shape == (1, 3, 24, 28)
    assert torch.equal(latent[..., :4, :4], stage.encode(image[..., :32, :32])[..., :4, :4])
    assert decode_tiled(stage, latent, 32).shape == image.shape
    kl = instantiate_from_config(KL).eval()
    posterior = encode_tiled(kl, image, 32)
    assert posterior.mode().shape == (1, 3, 24, 28)
    assert torch.equal(posterior.std[..., :4, :4], kl.encode(image[..., :32, :32]).std[..., :4, :4])
    assert torch.equal(encode_tiled(kl, image, 64).mode(), kl.encode(image).mode())


def test_memory_makes_the_tile(stage: nn.Module) -> None:
    each = bytes_per_pixel(stage)
    assert each == 12 * 4 * 32  # the widest layer has 32 channels at full size
    many = instantiate_from_config({**VQ, "params": {**VQ["params"], "n_embed": 4096}})
    assert bytes_per_pixel(many) == 3 * 4 * 4096 / 4  # a quarter as many latents as pixels
    side = tile_within(stage, int(each * 40 * 40))
    assert side == 40 and tile_side(stage, f"{each * 40 * 40 / 1e3:.3f}KB", 1) == 40
    assert tile_within(stage, int(each * 40 * 40), batch_size=4) == 16
    with pytest.raises(ValueError, match="lower the batch size"):
        tile_within(stage, 1000)
    for wrong in (31, 4):
        with pytest.raises(ValueError, match="factor 2"):
            tile_side(stage, wrong, 1)
    assert [bytes_of(text) for text in ("2GB", "1.5M", "1 GiB")] == [2_000_000_000, 1_500_000, 2**30]
    with pytest.raises(ValueError, match="got '3 apples'"):
        bytes_of("3 apples")


@torch.no_grad()
def test_a_diffusion_model_takes_its_tiles_from_its_config() -> None:
    model = LatentDiffusion(first_stage_config=VQ, unet_config=unet(), first_stage_tile=16, scale_factor=0.5)
    randomise(model.first_stage_model)
    image = picture(24)
    latent = model.to_latent(image)
    assert torch.equal(latent, 0.5 * encode_tiled(model.first_stage_model, image, 16))
    assert torch.equal(model.to_image(latent), decode_tiled(model.first_stage_model, latent / 0.5, 16))
    assert not torch.equal(latent, 0.5 * model.first_stage_model.encode(image))


CHILD = """
import sys, torch
from pathlib import Path
from ldm.models.tiling import decode_tiled, encode_tiled
from ldm.util import instantiate_from_config
from small_models import VQ
VQ["params"]["ddconfig"]["attn_type"] = "none"
stage = instantiate_from_config(VQ).eval().requires_grad_(False)
image, latent = torch.zeros(1, 3, 768, 768), torch.zeros(1, 3, 384, 384)
stage.decode(stage.encode(image[:, :, :32, :32]))
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew; else it may be that of the test's own process
before = status("VmRSS")
tile = sys.argv[1] if sys.argv[1] != "none" else None
with torch.no_grad():
    decode_tiled(stage, latent, tile)
    encode_tiled(stage, image, tile)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_768_pixels_stay_below_the_memory_limit() -> None:
    pictures = 12 * 768 * 768 * 3  # tiled result, its weights and copies

    def peak(tile: str) -> int:
        environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "PATH": ""}
        command = [sys.executable, "-c", CHILD, tile]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    limit = 100_000_000
    assert peak("100MB") < limit + pictures
    assert peak("none") > 2 * limit
