"""Which model a checkpoint holds: one that CompVis released, a shipped one, or one of which the sizes are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoint import Contents, misfit, read_contents
from ldm.config import read_config
from ldm.run import described_model, optional_of

UNET, TRANSFORMER, FIRST, AVERAGE = "model.diffusion_model.", "transformer.", "first_stage_model.", "model_ema."
CONDITION = "cond_stage_model."
OF_CLASSES_OR_TEXTS = f"it has {CONDITION}*: it reads classes or texts in place of neighbours"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers of batch norms
PARTS = {
    "network": (UNET, TRANSFORMER),
    "first stage": (FIRST,),
    "network of the condition": (CONDITION,),
    "running average (EMA)": (AVERAGE,),
}
STAGES = ("kl-f4", "kl-f8", "kl-f16", "kl-f32", "vq-f4", "vq-f4-noattn", "vq-f8", "vq-f8-n256", "vq-f16")


@dataclass(frozen=True)
class Known:
    """A model whose names and shapes are known.

    Attributes:
        title: which model it is.
        place: the folder for its weights, which has its config.
        config: a config that describes its networks.
        overrides: changes to that config.
    """

    title: str
    place: str
    config: str
    overrides: tuple[str, ...] = ()


_TAMING = "model.params.first_stage_config.params"
KNOWN = {
    "diffusion model": (
        Known(
            "CompVis' RDM of ImageNet; imagenet or imagenet_in-db, which have one layout",
            "models/rdm/imagenet",
            "configs/rdm/imagenet.yaml",
        ),
        Known("CompVis' RDM of FFHQ", "models/rdm/ffhq", "configs/rdm/ffhq.yaml"),
        Known("CompVis' text-to-image RDM of 768 pixels", "models/rdm/768x768", "configs/rdm/768x768.yaml"),
        Known("the shipped RDM", "models/rdm/emoji", "models/rdm/emoji/config.yaml"),
    ),
    "autoregressive model": (
        Known(
            "CompVis' RARM of ImageNet; dogs, mammals or animals, which have one layout",
            "models/rarm/dogs, mammals or animals",
            "configs/rarm/dogs.yaml",
            (f"{_TAMING}.embed_dim=256", f"{_TAMING}.ddconfig.z_channels=256"),
        ),
        Known("the shipped RARM", "models/rarm/emoji", "models/rarm/emoji/config.yaml"),
    ),
    "first stage": (
        *(
            Known(f"CompVis' first stage {name}", f"models/first_stage/{name}", f"configs/first_stage/{name}.yaml")
            for name in STAGES
        ),
        *(
            Known(
                f"the shipped first stage {name}",
                f"models/first_stage/{name}",
                f"models/first_stage/{name}/config.yaml",
            )
            for name in ("emoji-vq-f4", "emoji-kl-f4")
        ),
    ),
}


def kind_of(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the kind of model that tensors belong to, a key of :data:`KNOWN`, by their names; None for another."""
    if any(name.startswith(UNET) for name in tensors):
        return "diffusion model"
    if TRANSFORMER + "proj_in.weight" in tensors:
        return "autoregressive model"
    return "first stage" if "encoder.conv_in.weight" in tensors and "decoder.conv_in.weight" in tensors else None


def identify(tensors: Mapping[str, Tensor]) -> tuple[Known | None, str]:
    """Returns the known model that is most like some tensors, and what differs, in words; an empty text if nothing.

    Args:
        tensors: by name; only their shapes are looked at, so that they may be on the meta device.
    """
    best: tuple[int, Known | None, str] = (0, None, "")
    conditioned = any(name.startswith(CONDITION) for name in tensors)
    for known in KNOWN.get(kind_of(tensors) or "", ()):
        built = described_model(read_config([known.config], known.overrides)["model"])
        differs = misfit(built, tensors, optional_of(built))
        if not differs and not conditioned:
            return known, ""
        own = built.state_dict().items()
        alike = sum(name in tensors and tensors[name].shape == value.shape for name, value in own)
        best = max(best, (alike, known, differs or OF_CLASSES_OR_TEXTS), key=lambda found: found[0])
    return best[1], best[2]


def sizes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the sizes of the networks that tensors belong to, in words, one text for each network."""
    found = []
    kind = kind_of(tensors)
    if kind == "diffusion model":
        first = tensors[UNET + "input_blocks.0.0.weight"]
        channels = first.shape[0]
        factors = ", ".join(f"{width / channels:g}" for width in _widths(tensors))
        found.append(f"U-Net of {channels} channels times {factors}, latents of {first.shape[1]} channels")
    elif kind == "autoregressive model":
        tokens, width = tensors[TRANSFORMER + "proj_in.weight"].shape
        blocks = {name.split(".")[2] for name in tensors if name.startswith(TRANSFORMER + "transformer_blocks.")}
        found.append(f"transformer of {len(blocks)} blocks, {width} wide, {tokens} tokens")
    if contexts := {value.shape[1] for name, value in tensors.items() if name.endswith("attn2.to_k.weight")}:
        found[-1] += f", contexts of {' or '.join(map(str, sorted(contexts)))} numbers"
    prefix = FIRST if kind != "first stage" else ""
    if prefix + "decoder.conv_in.weight" in tensors:
        found.append(_first_stage(tensors, prefix))
    return found


def _widths(tensors: Mapping[str, Tensor]) -> list[int]:
    """Returns the channels of the levels of a U-Net, without repetitions."""
    found, block = [], 1
    while any(name.startswith(start := f"{UNET}input_blocks.{block}.0.") for name in tensors):
        if (last := tensors.get(f"{start}out_layers.3.weight")) is not None and last.shape[0] not in found:
            found.append(last.shape[0])
        block += 1
    return found


def _first_stage(tensors: Mapping[str, Tensor], prefix: str) -> str:
    halvings = sum(
        name.startswith(prefix + "encoder.down.") and name.endswith("downsample.conv.weight") for name in tensors
    )
    codes = tensors.get(prefix + "quantize.embedding.weight")
    latent = tensors[prefix + "decoder.conv_in.weight"].shape[1]
    kind = (
        f"KL, latents of {latent} channels"
        if codes is None
        else f"VQ, {codes.shape[0]} codes of {codes.shape[1]} numbers"
    )
    return f"first stage {kind}, {2**halvings} times smaller than the picture"


def report(path: Path, config: Path | None = None) -> Iterator[str]:
    """Yields lines that say what a checkpoint holds, without reading its numbers.

    Args:
        path: the file.
        config: the config that the file should fit; None to compare it with known models only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint, is incomplete, could run code, or does not fit the config; the message
            says what it is instead, if that is known.
    """
    contents = read_contents(path)
    tensors = contents.tensors
    yield f"file: {_gigabytes(path.stat().st_size)}; {_weights(tensors)}{_others(contents)}"
    counted = ", ".join(f"{what} {count:,}" for what, count in _counts(tensors).items() if count)
    yield f"parameters: {_parameters(tensors):,}{f' ({counted})' if counted else ''}"
    for text in sizes(tensors):
        yield f"sizes: {text}"
    wanted = None if config is None else read_config([config]).get("model")
    known, differs = identify(tensors)
    if wanted is not None:
        built = described_model(wanted)
        if wrong := misfit(built, tensors, optional_of(built)):
            raise ValueError(
                f"{path} is {known.title}, but {config} describes another model; move it to {known.place}"
                if known and not differs
                else f"{path} does not fit {config}: {wrong}"
            )
    if known is None:
        names = ", ".join(list(tensors)[:3])
        yield f"is: no diffusion model, autoregressive model or first stage with names of this code; it has {names}"
    elif differs:
        yield f"is: no known model; most like {known.title}, but {differs}"
    else:
        yield f"is: {known.title}; no name is missing or unexpected"
        if wanted is None:
            yield f"next: move it to {known.place}, beside the config.yaml there"
    if wanted is not None:
        yield f"fits: {config}"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _bytes(value: Any) -> int:
    """Returns the bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes, inside))


def _weights(tensors: Mapping[str, Tensor]) -> str:
    kinds: dict[str, int] = {}
    for tensor in tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        kinds[name] = kinds.get(name, 0) + _bytes(tensor)
    listed = ", ".join(f"{_gigabytes(size)} in {name}" for name, size in kinds.items() if size >= 1e5) or "nothing"
    return f"{len(tensors):,} tensors, {listed}"


def _others(contents: Contents) -> str:
    """Returns what a file holds beside the weights, in words."""
    text = "".join(f", {name} {contents.others[name]}" for name in ("epoch", "global_step") if name in contents.others)
    needless = _bytes(contents.others)
    return text + (f"; beside them {_gigabytes(needless)} that only training needs" if needless >= 1e5 else "")


def _counts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Returns the numbers in each part of a model."""
    found = dict.fromkeys(PARTS, 0)
    for name, tensor in tensors.items():
        for part, starts in PARTS.items():
            found[part] += tensor.numel() if name.startswith(starts) else 0
    return found


def _parameters(tensors: Mapping[str, Tensor]) -> int:
    """Returns the number of parameters: of all tensors but the running average and buffers."""
    kept = [t for n, t in tensors.items() if "." in n and not n.startswith(AVERAGE) and not n.endswith(STATISTICS)]
    return sum(tensor.numel() for tensor in kept)
