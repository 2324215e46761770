"""The losses of the first stages, their discriminator and quantiser, against the original's numbers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_cases import GoldenCase, load_golden
from torch import Tensor, nn

from ldm.checkpoint import write_weights
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.adversarial import AdversarialLoss, adaptive_weight
from ldm.modules.losses.contperceptual import LPIPSWithDiscriminator
from ldm.modules.losses.lpips import LPIPS
from ldm.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from ldm.util import get_obj_from_str, instantiate_from_config


class BlockDistance(nn.Module):
    """The distance that stood for LPIPS when the reference numbers were made."""

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return (F.avg_pool2d(images, 4) - F.avg_pool2d(others, 4)).square().mean((1, 2, 3), keepdim=True)


# Case, and for which generator steps it holds numbers; in the first of two steps the discriminator has not started.
CASES = [
    ("loss_vqperceptual_hinge", 5),
    ("loss_vqperceptual_hinge", 11),
    ("loss_vqperceptual_taming_vanilla", 0),
    ("loss_contperceptual_hinge", 2),
    ("loss_contperceptual_hinge", 3),
]


def prepare(name: str) -> tuple[GoldenCase, AdversarialLoss, dict[str, Tensor], Tensor]:
    """Returns the case, its loss in train mode, its inputs and the reconstruction made from them."""
    case = load_golden(name)
    config = case.card["config"]
    perceptual = BlockDistance() if config["params"]["perceptual_weight"] > 0 else None
    loss = instantiate_from_config(config, perceptual=perceptual)
    loss.load_state_dict(case.weights, strict=True)
    given = case.part("in")
    given["last_w"] = given["last_w"].clone().requires_grad_()
    return case, loss.train(), given, F.conv2d(given["h"], given["last_w"], padding=1)


def beside(given: dict[str, Tensor]) -> Tensor | DiagonalGaussianDistribution:
    """What the bottleneck hands to the loss."""
    return DiagonalGaussianDistribution(given["moments"]) if "moments" in given else given["codebook_loss"]


def gradient_norms(module: nn.Module) -> Tensor:
    return torch.stack([torch.zeros(()) if p.grad is None else p.grad.norm() for p in module.parameters()])


@pytest.mark.parametrize(("name", "step"), CASES)
def test_generator_loss_matches_original(name: str, step: int) -> None:
    case, loss, given, reconstruction = prepare(name)
    call, started = f"step{step}.opt0", step >= loss.disc_start
    total, log = loss.generator(given["x"], reconstruction, beside(given), given["last_w"], step)
    total.backward()
    case.check(f"{call}.loss", total)
    case.check(f"{call}.grad_last_w", given["last_w"].grad, "grad")
    case.check(f"{call}.grad_norms_of_loss_params", gradient_norms(loss), "grad")
    own = {"kl_loss", "logvar"} if "moments" in given else {"quant_loss"}
    own |= {"p_loss"} if loss.perceptual_loss is not None else set()
    assert set(log) == own | {"rec_loss", "nll_loss", "total_loss"} | ({"g_loss", "d_weight"} if started else set())
    for key in set(log) - ({"p_loss"} if "moments" in given else set()):  # which the original does not log there
        case.check(f"{call}.log.train.{key}", log[key], "grad" if key == "d_weight" else "forward")
    if started:
        running = loss.discriminator.state_dict()["main.3.running_mean"]
        case.check(f"{call}.after.discriminator.main.3.running_mean", running)


@pytest.mark.parametrize(("name", "step"), CASES)
def test_discriminator_loss_matches_original(name: str, step: int) -> None:
    case, loss, given, reconstruction = prepare(name)
    call = f"step{step}.opt1"
    value, log = loss.discriminate(given["x"], reconstruction)
    value.backward()
    for key in ("logits_real", "logits_fake"):
        case.check(f"{call}.log.train.{key}", log[key])
    running = loss.discriminator.state_dict()["main.3.running_mean"]
    case.check(f"{call}.after.discriminator.main.3.running_mean", running)
    assert given["last_w"].grad is None
    if step >= loss.disc_start:  # before, the original multiplies by zero
        case.check(f"{call}.loss", value)
        case.check(f"{call}.log.train.disc_loss", log["disc_loss"])
        case.check(f"{call}.grad_norms_of_loss_params", gradient_norms(loss), "grad")


@pytest.mark.parametrize(("name", "step"), CASES)
@pytest.mark.parametrize("optimizer", [0, 1])
def test_compvis_call_gives_the_original_loss(name: str, step: int, optimizer: int) -> None:
    case, loss, given, reconstruction = prepare(name)
    first = (given["x"], reconstruction, beside(given))
    if "moments" not in given:
        first = (first[2], *first[:2])
    options = {"last_layer": given["last_w"], "split": "val"}
    if "ind" in given:
        options["predicted_indices"] = given["ind"]
    value, log = loss(*first, optimizer, step, **options)
    case.check(f"step{step}.opt{optimizer}.loss", value)
    assert all(key.startswith("val/") for key in log)
    assert ("val/perplexity" in log) == ("ind" in given and optimizer == 0)
    for key in {"val/perplexity", "val/cluster_usage"} & log.keys():
        case.check(f"step{step}.opt0.log.train.{key.removeprefix('val/')}", log[key])


def test_adaptive_weight_is_the_ratio_of_gradients() -> None:
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    assert adaptive_weight(10 * w.sum(), (w * torch.tensor([3.0, 4.0])).sum(), w) == pytest.approx(10 * 2**0.5 / 5.0001)
    assert adaptive_weight(w.sum(), 1e-9 * w.sum(), w) == 1e4


def test_disc_factor_scales_both_adversarial_losses() -> None:
    torch.manual_seed(0)
    images, w = torch.rand(2, 3, 16, 16), torch.rand(3, 3, 1, 1, requires_grad=True)
    values = {}
    for factor in (0.0, 1.0, 2.0):
        torch.manual_seed(1)
        loss = VQLPIPSWithDiscriminator(0, disc_factor=factor, disc_num_layers=1, disc_ndf=4)
        total, log = loss.generator(images, F.conv2d(images, w), torch.zeros(()), w, 0)
        values[factor] = (total - log["nll_loss"]).item(), loss.discriminate(images, F.conv2d(images, w))[0].item()
    assert values[0.0] == (0, 0)
    assert values[2.0] == pytest.approx((2 * values[1.0][0], 2 * values[1.0][1]), rel=1e-4)


@torch.no_grad()
def test_without_gradients_the_adversarial_loss_is_left_out() -> None:
    """As in the validation of CompVis' trainers, whose balance of the two losses cannot be taken there."""
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    loss = VQLPIPSWithDiscriminator(0, disc_num_layers=1, disc_ndf=4).eval()
    total, log = loss(torch.tensor(0.25), images, images / 2, 0, 5, torch.zeros(1), split="val")
    assert total == log["val/nll_loss"] + 0.25 and log["val/d_weight"] == 0 and log["val/g_loss"] != 0


@torch.no_grad()
def test_discriminator_matches_original() -> None:
    case = load_golden("disc_bn")
    network, x = case.build(), case.part("in")["x"]
    case.check("logits_eval", network(x))
    case.check("logits_train", network.train()(x))
    state = network.state_dict()
    for key in case.part("out.after_train_forward"):
        case.check(f"after_train_forward.{key}", state[key])


@pytest.mark.parametrize("name", ["quantizer_legacy_true", "quantizer_legacy_false"])
def test_quantiser_matches_original(name: str) -> None:
    case = load_golden(name)
    z, w = case.part("in")["z"].requires_grad_(), case.part("in")["w"]
    network = case.build()
    code = network.embedding.weight
    quantized, loss, (_, _, indices) = network(z)
    grad_z, grad_code = torch.autograd.grad(loss, (z, code), retain_graph=True)
    through = torch.autograd.grad((quantized * w).sum(), z, retain_graph=True)[0]
    entries = network.get_codebook_entry(indices, None)
    case.check("indices", indices)
    shape = (len(z), *z.shape[2:], z.shape[1])
    forward = {"quant": quantized, "loss": loss, "codebook_entry_noshape": entries}
    forward["codebook_entry_shape"] = network.get_codebook_entry(indices, shape)
    gradients = {"grad_z_of_loss": grad_z, "grad_embedding_of_loss": grad_code, "grad_z_of_sum_qw": through}
    gradients |= {"grad_z_total": grad_z + through, "grad_embedding_total": grad_code}
    for kind, values in (("forward", forward), ("grad", gradients)):
        for key, value in values.items():
            case.check(key, value, kind)


def test_released_target_builds_offline_and_says_what_it_compares_by() -> None:
    params = {"disc_conditional": False, "disc_in_channels": 3, "disc_start": 0, "disc_weight": 0.75, "disc_ndf": 4}
    target = "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"
    loss = instantiate_from_config({"target": target, "params": params | {"codebook_weight": 1.0}})
    assert type(loss) is VQLPIPSWithDiscriminator and loss.describe() == "l1 x 1, no perceptual network"
    assert {name.split(".")[0] for name in loss.state_dict()} == {"discriminator"}
    with_network = VQLPIPSWithDiscriminator(0, perceptual=BlockDistance(), pixel_loss="l2")
    assert with_network.describe() == "l2 x 1, BlockDistance x 1"
    assert not with_network.train().perceptual_loss.training
    assert get_obj_from_str("ldm.modules.losses.LPIPSWithDiscriminator") is LPIPSWithDiscriminator
    assert get_obj_from_str("taming.modules.losses.lpips.LPIPS") is LPIPS


@pytest.mark.parametrize("build", [VQLPIPSWithDiscriminator, LPIPSWithDiscriminator])
def test_losses_refuse_unknown_kinds_and_a_missing_network(build: type[AdversarialLoss]) -> None:
    with pytest.raises(ValueError, match="disc_loss=wgan"):
        build(0, disc_loss="wgan")
    with pytest.raises(ValueError, match="no perceptual network is configured"):
        build(0, perceptual_weight=1.0)
    with pytest.raises(ValueError, match="disc_conditional.*true"):
        build(0, disc_conditional=True)


def test_perceptual_kinds_beside_lpips_are_refused() -> None:
    with pytest.raises(ValueError, match="perceptual_loss.*'clips'.*'lpips'"):
        VQLPIPSWithDiscriminator(0, perceptual_loss="clips")


def test_lpips_reads_its_weights_from_a_released_first_stage(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = LPIPS()
    x, y = torch.rand(2, 2, 3, 16, 16)
    with pytest.raises(ValueError, match="LPIPS.*'weights'"):
        network(x, y)
    state = {name: value.abs() if name.startswith("lin") else value for name, value in network.state_dict().items()}
    inside = {f"loss.perceptual_loss.{name}": value for name, value in state.items()}
    write_weights(tmp_path / "stage.safetensors", inside | {"encoder.conv_in.weight": torch.zeros(1)})
    loaded = LPIPS(tmp_path / "stage.safetensors")
    distance = loaded(x, y)
    assert distance.shape == (2, 1, 1, 1) and (distance > 0).all()
    assert torch.equal(loaded(x, x), torch.zeros(2, 1, 1, 1))
    assert torch.allclose(distance, loaded(y, x)) and len(loaded.state_dict()) == 33
    first = state["lin0.model.1.weight"]
    features = (loaded.net["slice1"](loaded.scaling_layer(images)) for images in (x, y))
    a, b = (f / f.norm(dim=1, keepdim=True).clamp(min=1e-10) for f in features)
    by_hand = F.conv2d((a - b).square(), first).mean((2, 3), keepdim=True)
    for name in ("lin1", "lin2", "lin3", "lin4"):
        state[f"{name}.model.1.weight"] = torch.zeros_like(state[f"{name}.model.1.weight"])
    loaded.load_state_dict(state)
    assert torch.allclose(loaded(x, y), by_hand, atol=1e-7)
