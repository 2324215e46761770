"""The U-Net against the original's outputs and gradients, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from golden_cases import GoldenCase, golden_names, load_golden

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
    expected = case.part("out")
    inputs = case.part("in")
    asked = [inputs[key].requires_grad_() for key in inputs if f"grad_{key}" in expected]
    y = call(model, case, inputs)
    case.check("y", y)
    if "grad_norms" not in expected:
        return
    loss = y.square().mean()
    loss.backward()
    case.check("loss_mean_square", loss)
    assert asked
    for key, tensor in inputs.items():
        if tensor.requires_grad:
            case.check(f"grad_{key}", tensor.grad, "grad")
    gradients = {key: p.grad for key, p in model.named_parameters()}
    order = case.card["param_order_for_grad_norms"]
    assert list(gradients) == order
    norms = torch.stack([torch.zeros(()) if g is None else g.norm() for g in gradients.values()])
    case.check("grad_norms", norms, "grad")


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


@pytest.mark.parametrize("widths", [8, [8, 6]])
def test_a_projected_context_gives_the_same_numbers(widths: int | list[int]) -> None:
    torch.manual_seed(0)
    model = small(use_spatial_transformer=True, context_dim=widths, transformer_depth=2, attention_resolutions=[1, 2])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0, 5, 999])
    context = torch.randn(3, 2, 8) if widths == 8 else [torch.randn(3, 2, 8), torch.randn(3, 5, 6)]
    projected = model.project_context(context)
    assert torch.equal(model(x, t, projected), model(x, t, context))
    with pytest.raises(ValueError, match="context.*batch of 3, expected 2"):
        model(x[:2], t[:2], projected)
    with pytest.raises(ValueError, match=r"expected \[3, L, 8\]"):
        model.project_context(torch.randn(3, 2, 9))


def test_a_projected_context_is_traced_without_breaks() -> None:
    torch.manual_seed(0)
    model = small(use_spatial_transformer=True, context_dim=8, channel_mult=[1], attention_resolutions=[1])
    torch.nn.init.normal_(model.out[2].weight)
    x, t, context = torch.randn(2, 3, 4, 4), torch.tensor([0, 5]), torch.randn(2, 2, 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, model.project_context(context)), model(x, t, context))


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
    """Processors differ by a unit in the last place of a float32 exponential, which a late time multiplies."""
    case = load_golden("timestep_embeddings")
    t = case.tensors["in.t"]
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    two_units = F.pad((t[:, None] * frequencies * 2.0**-22).repeat(1, 2), (0, dim % 2))
    case.check(f"ldm_timestep_embedding.{dim}", timestep_embedding(t, dim), rounding=two_units)
