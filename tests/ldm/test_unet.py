"""The U-Net against the original's outputs and gradients, and what it refuses."""

import pytest
import torch
from golden_cases import GoldenCase, error_of, golden_names, load_golden

from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.util import timestep_embedding


def call(model: torch.nn.Module, case: GoldenCase, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    options = case.card["options"]
    contexts = [inputs[name] for name in sorted(inputs) if name.startswith("context")]
    context = contexts if options.get("context_list") else next(iter(contexts), None)
    timesteps = None if options.get("no_t") else inputs["t"]
    return model(inputs["x"], timesteps, context=context, y=inputs.get("y"))


@pytest.mark.parametrize("use_checkpoint", [False, True])
@pytest.mark.parametrize("name", golden_names("unet_"))
def test_matches_original(name: str, use_checkpoint: bool) -> None:
    case = load_golden(name)
    case.card["config"]["params"]["use_checkpoint"] = use_checkpoint
    model = case.build()
    tolerance = case.card["tolerance"]
    expected = case.part("out")
    inputs = case.part("in")
    asked = [inputs[key].requires_grad_() for key in inputs if f"grad_{key}" in expected]
    y = call(model, case, inputs)
    assert error_of(y, expected["y"]) <= tolerance["rtol_of_max_forward"]
    if "grad_norms" not in expected:
        return
    loss = y.square().mean()
    loss.backward()
    assert error_of(loss, expected["loss_mean_square"]) <= tolerance["rtol_of_max_forward"]
    assert asked
    for key, tensor in inputs.items():
        if tensor.requires_grad:
            assert error_of(tensor.grad, expected[f"grad_{key}"]) <= tolerance["rtol_of_max_grad"], key
    gradients = {key: p.grad for key, p in model.named_parameters()}
    order = case.card["param_order_for_grad_norms"]
    assert list(gradients) == order
    norms = torch.stack([torch.zeros(()) if g is None else g.norm() for g in gradients.values()])
    assert error_of(norms, expected["grad_norms"]) <= tolerance["rtol_of_max_grad"]


def small(**changes: object) -> UNetModel:
    options: dict = {
        "image_size": 8,
        "in_channels": 3,
        "model_channels": 32,
        "out_channels": 3,
        "num_res_blocks": 1,
        "attention_resolutions": [2],
        "channel_mult": [1, 1],
        "num_heads": 2,
    }
    return UNetModel(**(options | changes))


def test_starts_at_zero_and_batch_does_not_matter() -> None:
    torch.manual_seed(0)
    model = small(use_spatial_transformer=True, context_dim=8)
    x, t, context = torch.randn(3, 3, 8, 8), torch.tensor([0, 5, 999]), torch.randn(3, 2, 8)
    assert torch.equal(model(x, t, context), torch.zeros(3, 3, 8, 8))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    together = model(x, t, context)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], context[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, model(x, t, context.flip(0)))


def test_checkpointing_without_context_and_with_frozen_weights() -> None:
    torch.manual_seed(0)
    model = small(use_spatial_transformer=True, context_dim=32, use_checkpoint=True)
    torch.nn.init.normal_(model.out[2].weight)
    model.input_blocks.requires_grad_(False)
    model(torch.randn(1, 3, 8, 8), torch.tensor([3])).square().mean().backward()
    assert model.input_blocks[0][0].weight.grad is None
    assert model.out[2].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_dim": 8}, "use_spatial_transformer=False with context_dim=8"),
        ({"use_spatial_transformer": True}, "context_dim=None"),
        ({"num_heads": -1}, "neither num_heads nor num_head_channels"),
        ({"num_heads": 5}, "num_heads is 5, expected a divisor of 32"),
        ({"num_head_channels": 64}, "num_head_channels is 64"),
        ({"model_channels": 48}, "48 channels, expected a multiple of 32"),
        ({"use_fp16": True}, "use_fp16 is True"),
    ],
)
def test_refuses_options(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_refuses_inputs() -> None:
    model, looking = small(), small(use_spatial_transformer=True, context_dim=8)
    x, t = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expected \[B, 3, h, w\]"):
        model(x[:, :2], t)
    with pytest.raises(ValueError, match="multiples of 2"):
        model(x[..., :7], t)
    with pytest.raises(ValueError, match="no timesteps"):
        model(x)
    with pytest.raises(ValueError, match="num_classes is None"):
        model(x, t, y=t)
    with pytest.raises(ValueError, match="without cross-attention"):
        model(x, t, torch.zeros(2, 1, 8))
    with pytest.raises(ValueError, match=r"shape \[2, 1, 9\], expected \[2, L, 8\]"):
        looking(x, t, torch.zeros(2, 1, 9))


@pytest.mark.parametrize("dim", [32, 33, 192])
def test_timestep_embedding(dim: int) -> None:
    case = load_golden("timestep_embeddings")
    expected = case.tensors[f"out.ldm_timestep_embedding.{dim}"]
    got = timestep_embedding(case.tensors["in.t"], dim)
    assert error_of(got, expected) <= case.card["tolerance"]["rtol_of_max"]
