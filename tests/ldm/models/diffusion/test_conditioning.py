"""Where conditions come from and enter; CompVis' arguments for losses, weights and the scale of latents."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import IDENTITY, VQ, randomise, unet
from torch import Tensor, nn

from ldm.checkpoint import write_weights
from ldm.models.diffusion.condition import Hybrid
from ldm.models.diffusion.ddim import DDIMSampler, as_condition
from ldm.models.diffusion.ddpm import DDPM, LatentDiffusion
from ldm.models.diffusion.samplers import ddim
from ldm.models.diffusion.stepping import seeded_noise
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.util import instantiate_from_config

LINEAR = {"target": "torch.nn.Linear", "params": {"in_features": 5, "out_features": 6}}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_channels(channels: int, context_dim: int | None = None) -> dict[str, Any]:
    config = unet(context_dim)
    return config | {"params": config["params"] | {"in_channels": channels}}


def make(config: dict[str, Any] | None = None, **options: Any) -> LatentDiffusion:
    torch.manual_seed(0)
    model = LatentDiffusion(
        options.pop("first_stage", IDENTITY), unet_config=config or unet(), timesteps=20, use_ema=False, **options
    )
    randomise(model.model)
    return model.eval()


@torch.no_grad()
def test_a_condition_enters_as_its_key_says() -> None:
    x, t, image, tokens = draw(2, 3, 4, 4), torch.tensor([1, 5]), draw(2, 2, 4, 4, seed=1), draw(2, 3, 6, seed=2)
    classes = {"target": unet()["target"], "params": unet()["params"] | {"num_classes": 4}}
    labels = torch.tensor([0, 3])
    for key, config, condition, inputs, options in [
        ("concat", with_channels(5), image, torch.cat([x, image], 1), {}),
        ("crossattn", unet(6), tokens, x, {"context": tokens}),
        ("hybrid", with_channels(5, 6), Hybrid(image, tokens), torch.cat([x, image], 1), {"context": tokens}),
        ("adm", classes, labels, x, {"y": labels}),
        (None, unet(), None, x, {}),
    ]:
        wrapper = DiffusionWrapper(config, key)
        randomise(wrapper)
        assert torch.equal(wrapper(x, t, condition), wrapper.diffusion_model(inputs, t, **options)), key
    with pytest.raises(ValueError, match="conditioning_key.*'crossatn'.*'crossattn'"):
        DiffusionWrapper(unet(6), "crossatn")
    with pytest.raises(ValueError, match="Tensor.*conditioning_key 'None'"):
        wrapper(x, t, tokens)


@torch.no_grad()
def test_guidance_of_a_hybrid_acts_on_its_tokens() -> None:
    model = make(with_channels(5, 6), conditioning_key="hybrid")
    x, t = draw(2, 3, 4, 4), torch.tensor([1, 5])
    given, null = Hybrid(draw(2, 2, 4, 4, seed=1), draw(2, 3, 6, seed=2)), torch.zeros(2, 3, 6)
    eps, nothing = model.model(x, t, given), model.model(x, t, Hybrid(given.image, null))
    assert torch.allclose(model.denoiser(given)(x, t), eps)
    guided = model.denoiser(given, null, 3.0)(x, t)
    assert torch.allclose(guided, nothing + 3 * (eps - nothing), atol=1e-4 * float(guided.abs().max()))
    assert model.sample(given, (3, 4, 4), [0, 1], steps=2, scale=2.0, null=null).shape == (2, 3, 4, 4)


def count_projections(model: LatentDiffusion) -> dict[str, int]:
    """Counts, from now on, the calls of every layer that projects keys or values."""
    counts: dict[str, int] = {}
    for name, module in model.model.named_modules():
        if name.endswith((".to_k", ".to_v")):
            counts[name] = 0
            module.register_forward_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
    return counts


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("key", ["crossattn", "hybrid"])
def test_a_sampling_run_projects_its_context_once(key: str, scale: float) -> None:
    model = make(with_channels(5 if key == "hybrid" else 3, 6), conditioning_key=key)
    tokens = draw(2, 3, 6)
    condition = Hybrid(draw(2, 2, 4, 4, seed=1), tokens) if key == "hybrid" else tokens
    counts = count_projections(model)
    model.sample(condition, (3, 4, 4), [0, 1], steps=4, scale=scale, null=torch.zeros(1, 3, 6))
    assert {count for name, count in counts.items() if "attn2" in name} == {1}
    assert {count for name, count in counts.items() if "attn1" in name} == {4}
    given = {"c_concat": [condition.image], "c_crossattn": [tokens]} if isinstance(condition, Hybrid) else tokens
    null = torch.zeros(2, 3, 6)
    DDIMSampler(model).sample(
        3, 2, (3, 4, 4), given, unconditional_guidance_scale=scale, unconditional_conditioning=null
    )
    assert {count for name, count in counts.items() if "attn2" in name} == {2}


@torch.no_grad()
def test_every_sampling_run_projects_with_the_weights_of_its_time() -> None:
    tokens = draw(2, 3, 6)
    options: dict[str, Any] = {"latent_shape": (3, 4, 4), "seeds": [0, 1], "steps": 3, "sampler": "ddim"}
    model = LatentDiffusion(IDENTITY, unet_config=unet(6), conditioning_key="crossattn", timesteps=20).eval()
    randomise(model.model)
    before = model.sample(tokens, **options)
    with model.ema_scope():  # holds the weights it was built with, whose output is zero
        averaged = model.sample(tokens, **options)
    for name, parameter in model.model.named_parameters():
        if "attn2.to_" in name:
            parameter.mul_(2)
    changed = model.sample(tokens, **options)
    assert not torch.allclose(before, averaged) and not torch.allclose(before, changed)
    noise = seeded_noise([0, 1], (3, 4, 4), model.device)
    assert torch.equal(changed, ddim(lambda x, t: model.predict_eps(x, t, tokens), noise, model.schedule, 3))


@torch.no_grad()
def test_a_network_with_nothing_to_project_gets_the_tokens() -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:  # noqa: ARG002
            return x + context.sum((1, 2)).view(-1, 1, 1, 1)

    model, tokens = make(unet(6), conditioning_key="crossattn"), draw(2, 3, 6)
    model.model.diffusion_model = Sums()
    x, t = draw(2, 3, 4, 4, seed=1), torch.tensor([1, 5])
    assert torch.equal(model.denoiser(tokens)(x, t), x + tokens.sum((1, 2)).view(-1, 1, 1, 1))


def test_compvis_forms_of_a_condition() -> None:
    image, tokens = draw(1, 2, 4, 4), draw(1, 3, 6)
    assert as_condition(None) is None and as_condition(tokens) is tokens and as_condition([tokens]) is tokens
    assert torch.equal(as_condition([tokens, 2 * tokens]), torch.cat([tokens, 2 * tokens], 1))
    assert as_condition({"c_concat": [image]}) is image and as_condition({"c_crossattn": tokens}) is tokens
    assert as_condition({"c_concat": [image], "c_crossattn": [tokens]}) == Hybrid(image, tokens)


def test_the_sampler_door_calls_back_and_keeps_every_so_many_steps() -> None:
    model = make()
    numbers: list[int] = []
    shown: list[int] = []
    x = draw(2, 3, 4, 4)
    latent, steps = DDIMSampler(model).sample(
        7,
        2,
        (3, 4, 4),
        callback=numbers.append,
        img_callback=lambda x0, i: shown.append(i if x0.shape == x.shape else -1),
        x_T=x,
        log_every_t=3,
    )
    assert numbers == shown == list(range(7))
    assert len(steps["x_inter"]) == len(steps["pred_x0"]) == 1 + 3  # the start; steps 0, 3 and 6
    assert torch.equal(latent, steps["x_inter"][-1])
    with torch.no_grad():
        assert torch.equal(latent, ddim(model.denoiser(None), x, model.schedule, 7))


def test_the_cond_stage_makes_the_context() -> None:
    read = draw(2, 3, 5)
    model = make(unet(6), cond_stage_config=LINEAR, cond_stage_key="words", concat_mode=False)
    assert model.model.conditioning_key == "crossattn"
    assert torch.equal(model.context({"words": read}), model.cond_stage_model(read))
    assert not model.context({"words": read}).requires_grad
    model.train()
    assert not model.cond_stage_model.training
    trained = make(unet(6), cond_stage_config=LINEAR, conditioning_key="crossattn", cond_stage_trainable=True)
    group = trained.configure_optimizers()["optimizer"].param_groups[0]["params"]
    assert {id(p) for p in trained.cond_stage_model.parameters()} <= {id(p) for p in group}
    trained.train()
    assert trained.encode_condition(read).requires_grad and trained.cond_stage_model.training
    batch = {"class_label": torch.tensor([1])}
    whole = make(unet(6), cond_stage_config={"target": "torch.nn.Identity"}, cond_stage_key="class_label")
    assert whole.context(batch) is batch


def test_the_first_stage_as_cond_stage() -> None:
    model = make(
        with_channels(6),
        first_stage=VQ,
        cond_stage_config="__is_first_stage__",
        cond_stage_key="masked",
        scale_factor=0.5,
    )
    assert model.cond_stage_model is model.first_stage_model and model.model.conditioning_key == "concat"
    masked = draw(1, 3, 8, 8)
    assert torch.equal(model.context({"masked": masked}), model.first_stage_model.encode(masked))
    names = set(model.state_dict())
    assert {n.replace("first_stage_model.", "cond_stage_model.") for n in names if n.startswith("first_")} <= names
    none = make(cond_stage_config="__is_unconditional__", conditioning_key="crossattn")
    assert none.context({}) is None and none.model.conditioning_key is None


def test_logvar_is_learned_where_asked() -> None:
    model = make(learn_logvar=True, logvar_init=0.2, l_simple_weight=0.5, loss_type="l1")
    assert {"logvar"} == {n for n in model.state_dict() if "." not in n} - set(make().state_dict())
    group = model.configure_optimizers()["optimizer"].param_groups[0]["params"]
    assert any(p is model.logvar for p in group)
    x0, noise, t = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1), torch.tensor([3, 9])
    terms = model.losses(x0, None, t, noise)
    error = (model.model(model.schedule.add_noise(x0, noise, t), t) - noise).abs().mean((1, 2, 3))
    assert torch.allclose(terms["loss"], 0.5 * (error / torch.tensor(0.2).exp() + 0.2))
    with pytest.raises(ValueError, match="loss_type.*'l3'.*l1 or l2"):
        make(loss_type="l3")


def test_images_are_clipped_in_their_own_space_only() -> None:
    torch.manual_seed(0)
    pixel = DDPM(unet(), timesteps=20, use_ema=False)
    randomise(pixel.model)
    assert pixel.sample(None, (3, 4, 4), [0, 1], sampler="ddpm", steps=20).abs().max() <= 1 + 1e-4
    assert make(clip_denoised=True).sample(None, (3, 4, 4), [0, 1], sampler="ddpm", steps=20).abs().max() > 2
    given = DDPM(unet(), given_betas=[0.1, 0.2, 0.4])
    assert torch.allclose(given.betas, torch.tensor([0.1, 0.2, 0.4])) and len(given.schedule) == 3


def test_parts_of_a_checkpoint(tmp_path: Path) -> None:
    source = make()
    write_weights(file := tmp_path / "m.safetensors", source.state_dict())
    only: dict[str, Any] = {"unet_config": unet(), "timesteps": 30, "ckpt_path": str(file)}
    with pytest.raises(ValueError, match="12 of another shape"):
        LatentDiffusion(IDENTITY, use_ema=False, **only)
    loaded = LatentDiffusion(IDENTITY, load_only_unet=True, **only)
    name = "diffusion_model.out.2.weight"
    assert torch.equal(loaded.model.get_parameter(name), source.model.get_parameter(name))
    assert torch.equal(loaded.model_ema.diffusion_modelout2weight, source.model.get_parameter(name))
    ignored = LatentDiffusion(
        IDENTITY, use_ema=False, ignore_keys=["model.diffusion_model.out"], **only | {"timesteps": 20}
    )
    assert ignored.model.get_parameter(name).abs().max() == 0  # a new U-Net's last layer
    other = "diffusion_model.time_embed.0.weight"
    assert torch.equal(ignored.model.get_parameter(other), source.model.get_parameter(other))


def test_a_scale_that_came_with_weights_is_kept(tmp_path: Path) -> None:
    source = make(scale_by_std=True)
    source.on_train_batch_start({"image": 4 * draw(8, 3, 4, 4)}, 0)
    assert float(source.scale_factor) == pytest.approx(0.25, rel=0.05)
    write_weights(file := tmp_path / "m.safetensors", source.state_dict())
    loaded = make(scale_by_std=True, ckpt_path=str(file))
    loaded.on_train_batch_start({"image": draw(8, 3, 4, 4)}, 0)
    assert torch.equal(loaded.scale_factor, source.scale_factor)
    with pytest.raises(ValueError, match="1 unexpected: scale_factor"):
        make(ckpt_path=str(file))
    with pytest.raises(ValueError, match="scale_factor.*0.5.*scale_by_std"):
        make(scale_by_std=True, scale_factor=0.5)
    with pytest.raises(ValueError, match="num_timesteps_cond.* 4"):
        make(num_timesteps_cond=4)


def test_builds_on_the_meta_device_with_its_numbers_known() -> None:
    config = {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {"unet_config": unet(), "first_stage_config": VQ, "linear_start": 0.0015, "linear_end": 0.0195},
    }
    with torch.device("meta"):
        model = instantiate_from_config(config)
    assert all(p.is_meta for p in model.parameters()) and isinstance(model.model, nn.Module)
    assert float(model.betas[0]) == pytest.approx(0.0015)
    with pytest.raises(ValueError, match="did you mean 'linear_start'"):
        instantiate_from_config({**config, "params": config["params"] | {"linear_stat": 1.0}})
