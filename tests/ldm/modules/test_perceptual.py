"""Perceptual networks: what a user has is used, what cannot be had is said, nothing is silently left out."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from pictures import write_clip
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.vgg import cfgs, make_layers

from ldm.checkpoint import write_checkpoint, write_weights
from ldm.modules.losses.contperceptual import LPIPSWithDiscriminator
from ldm.modules.losses.lpips import LPIPS, channel_weights
from ldm.modules.losses.perceptual import ClipDistance, TorchvisionDistance, perceptual_network
from ldm.modules.losses.vqperceptual import VQLPIPSWithDiscriminator

ROOT = Path(__file__).parents[3]
CLIP, LPIPS_TARGET = "ldm.modules.losses.perceptual.ClipDistance", "ldm.modules.losses.lpips.LPIPS"


def pair(side: int = 32) -> Tensor:
    return torch.rand(2, 2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def vgg(tmp_path: Path) -> Path:
    """A file of VGG16's features as torchvision names them, untrained."""
    torch.manual_seed(0)
    layers = make_layers(cfgs["D"])
    state = {f"features.{name}": value for name, value in layers.state_dict().items()}
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    write_checkpoint(folder / "vgg16-397923af.pth", state | {"classifier.0.bias": torch.zeros(2)})
    return folder / "vgg16-397923af.pth"


def check_distance(network: nn.Module) -> None:
    x, y = pair()
    near = x + 0.05 * (y - x)
    distance = network(x, y)
    assert distance.shape == (2, 1, 1, 1) and distance.dtype == torch.float32
    assert (network(x, x) == 0).all() and (network(x, near) > 0).all() and (network(x, near) < distance).all()
    assert torch.allclose(distance, network(y, x))
    near.requires_grad_()
    network(x, near).sum().backward()
    assert near.grad is not None and near.grad.isfinite().all() and near.grad.abs().sum() > 0


@pytest.mark.parametrize("convolutional", [False, True])
def test_clip_towers_of_both_kinds_give_a_distance(convolutional: bool, tmp_path: Path) -> None:
    model = str(ROOT / "models" / "clip" / "emoji") if convolutional else write_clip(tmp_path / "clip")
    network = ClipDistance(model)
    check_distance(network)
    assert model in network.name and network.name.startswith("ClipDistance of")
    assert len(network.features(network.scaled(pair()[0]))) == (5 if convolutional else 1)


def test_clip_distance_by_hand(tmp_path: Path) -> None:
    network = ClipDistance(write_clip(tmp_path / "clip"), layers=[0])
    x, y = (network.features(network.scaled(images))[0] for images in pair(8))
    assert x.shape == (2, 16, 2, 2)
    cosine = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
    assert torch.allclose(network(*pair(8)).flatten(), (2 - 2 * cosine).mean((1, 2)), atol=1e-6)
    with pytest.raises(ValueError, match=r"layers: got \[3\], expected numbers from 0 to 0"):
        ClipDistance(write_clip(tmp_path / "other"), layers=[3])


def test_torchvision_networks_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_weights(tmp_path / "net.safetensors", get_model("mobilenet_v2", weights=None).state_dict())
    network = TorchvisionDistance("mobilenet_v2", tmp_path / "net.safetensors")
    check_distance(network)
    assert network.name.startswith("TorchvisionDistance of mobilenet_v2 (net.safetensors), layers features.1,")
    with pytest.raises(ValueError, match="layers.*shufflenet_v2_x0_5"):
        TorchvisionDistance("shufflenet_v2_x0_5", tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="does not fit ResNet"):
        TorchvisionDistance("resnet18", tmp_path / "net.safetensors")


def test_lpips_takes_torchvisions_vgg_and_the_published_channel_weights(
    vgg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = LPIPS(vgg)
    check_distance(network)
    assert network.name == "LPIPS (VGG16 of vgg16-397923af.pth)"
    assert [value.shape[1] for value in channel_weights().values()] == [64, 128, 256, 512, 512]
    assert torch.equal(network.get_parameter("lin4.model.1.weight"), channel_weights()["lin4.model.1.weight"])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert torch.equal(LPIPS("download")(*pair()), network(*pair()))
    loss = VQLPIPSWithDiscriminator(0, perceptual=network, disc_num_layers=1, disc_ndf=4)
    own = {name: value for name, value in loss.state_dict().items() if not name.startswith("perceptual_loss.")}
    loss.load_state_dict(own, strict=False)  # as from weights to start from, which hold no loss
    assert loss.distance(*pair())[1]["p_loss"] == network(*pair()).mean()


def test_what_cannot_be_had_is_said_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="vgg16.*https://"):
        LPIPS("download")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_first_network_that_can_be_had_is_taken_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = write_clip(tmp_path / "clip")
    choices = [
        {"target": LPIPS_TARGET, "params": {"weights": str(tmp_path / "none.pth")}},
        {"target": CLIP, "params": {"model": clip}},
    ]
    with caplog.at_level(logging.WARNING):
        loss = VQLPIPSWithDiscriminator(0, perceptual=choices, disc_num_layers=1, disc_ndf=4)
    assert "LPIPS: no checkpoint at" in caplog.text
    assert loss.describe().startswith(f"l1 x 1, ClipDistance of {clip} (") and loss.describe().endswith("x 1")
    x, y = pair(8)
    distance, log = loss.distance(x, y)
    assert log["p_loss"] > 0 and torch.allclose(distance, (x - y).abs() + loss.perceptual_loss(x, y))
    with pytest.raises(ValueError, match="LPIPS: no checkpoint"):
        perceptual_network(choices[:1])
    with pytest.raises(ValueError, match="has no parameter 'weight'; did you mean 'weights'"):
        perceptual_network([choices[1], {"target": LPIPS_TARGET, "params": {"weight": "x"}}])


def test_the_network_moves_with_the_loss_but_is_neither_stored_nor_trained(tmp_path: Path) -> None:
    config = {"target": CLIP, "params": {"model": write_clip(tmp_path / "clip")}}
    loss = LPIPSWithDiscriminator(0, perceptual=config, disc_num_layers=1, disc_ndf=4)
    assert {name.split(".")[0] for name in loss.state_dict()} == {"discriminator", "logvar"}
    assert not any(name.startswith("perceptual") for name, _ in loss.named_parameters())
    network = loss.perceptual_loss
    assert network is not None
    loss.double().train()
    assert next(network.network.parameters()).dtype == torch.float64 and not network.network.training
    assert network(*pair(8).double()).isfinite().all()
