"""Measures what this project adds to the time of a pipeline of diffusers: ``python -m benchmarks.generators``.

A pipeline of Stable Diffusion's architecture, smaller and with random weights, draws with the vectors of four database
rows as image prompts: called by hand, and as the generator of a request, in turns. The images must have equal bits. The
look-up of the neighbours and the copy check are not part of it; ``whole`` is a request with both, from a text to the
checked image. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import rdm
from ldm.checkpoint import write_weights
from ldm.command_line import positive
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.sampling import ways
from rdm.sampling.samples import sample
from rdm.sampling.settings import THRESHOLD, Settings

CONTEXT = 64  # width of the tokens that the U-Net sees
PROMPT = "a red guitar"


def write_pipeline(folder: Path, width: int) -> tuple[str, str]:
    """Writes a pipeline and an adapter for vectors of a width; returns the folder and the file."""
    torch.manual_seed(0)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "words").mkdir()
    (folder / "words" / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "words" / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=CONTEXT, intermediate_size=4 * CONTEXT, num_hidden_layers=4,
        num_attention_heads=4, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    unet: Any = UNet2DConditionModel(
        sample_size=32, block_out_channels=(64, 128, 256, 256), cross_attention_dim=CONTEXT, attention_head_dim=8
    )
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    }  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(32, 64, 128, 128), sample_size=256, **blocks)
    pipe: Any = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=CLIPTextModel(text), scheduler=DDIMScheduler(), safety_checker=None,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "words", model_max_length=77), feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder / "pipeline")
    state = {
        "image_proj.proj.weight": torch.randn(4 * CONTEXT, width) / width**0.5,
        "image_proj.proj.bias": torch.zeros(4 * CONTEXT),
        "image_proj.norm.weight": torch.ones(CONTEXT),
        "image_proj.norm.bias": torch.zeros(CONTEXT),
    }
    names = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    for number, name in enumerate(names):
        for part in ("to_k_ip", "to_v_ip"):
            shape = (unet.get_submodule(name).to_k.out_features, CONTEXT)
            state[f"ip_adapter.{2 * number + 1}.{part}.weight"] = torch.randn(shape) / CONTEXT**0.5
    write_weights(folder / "adapter.safetensors", state)
    return str(folder / "pipeline"), str(folder / "adapter.safetensors")


def measure(database: str, steps: int, repeats: int) -> dict[str, Any]:
    """Returns the seconds of an image by hand and by this project, and the overhead in percent.

    Raises:
        ValueError: the two images differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipeline, adapter = write_pipeline(Path(folder), RetrievalDatabase.open(database).dim)
        model: Any = rdm.load(generator=pipeline, adapter=adapter, database=database, image_encoder="database")
        request = ways.rows(model, [0, 1, 2, 3], 1)
        settings = Settings(steps=steps, copy_threshold=None)
        vectors = request.retrieved.embeddings.float()
        pair = [torch.cat([torch.zeros_like(vectors), vectors])]
        sample(model, request, settings)
        bare = model.model._loaded[1]

        def by_hand() -> torch.Tensor:
            bare.set_ip_adapter_scale(settings.neighbour_scale)
            images = bare(
                [""], num_inference_steps=steps, guidance_scale=7.5, ip_adapter_image_embeds=pair, output_type="pt",
                generator=[torch.Generator().manual_seed(0)],
            ).images  # fmt: skip
            return images * 2 - 1

        def whole() -> torch.Tensor:
            return sample(model, ways.texts(model, PROMPT, k=4), replace(settings, copy_threshold=THRESHOLD)).images

        whole()
        drawn = {"by_hand": by_hand, "here": lambda: sample(model, request, settings).images, "whole": whole}
        seconds: dict[str, list[float]] = {name: [] for name in drawn}
        for _ in range(repeats):
            images = []
            for name, draw in drawn.items():
                start = time.perf_counter()
                images.append(draw())
                seconds[name].append(time.perf_counter() - start)
            if not torch.equal(*images[:2]):
                raise ValueError("the images differ, expected equal bits")
    found = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    ratios = {
        name: statistics.median(b / a for a, b in zip(seconds["by_hand"], seconds[name], strict=True))
        for name in ("here", "whole")
    }
    return {**found, "overhead_percent": {name: round(100 * (ratio - 1), 2) for name, ratio in ratios.items()}}


def main() -> None:
    """Prints the figures."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--database", default="data/databases/emoji", help="a database, whose first four rows are shown")
    p.add_argument("--steps", type=positive, default=10, help="steps of an image")
    p.add_argument("--repeats", type=positive, default=15, help="images of each kind")
    args = p.parse_args()
    print(
        json.dumps({"steps": args.steps, "repeats": args.repeats, **measure(args.database, args.steps, args.repeats)})
    )


if __name__ == "__main__":
    main()
