"""A whole tiny system, untrained: pictures, CLIP, first stage, database with its index, retrieval-augmented model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.fuzz.attempt import TREE
from ldm.checkpoint import write_weights
from ldm.config import write_config
from ldm.util import instantiate_from_config

PLACE: list[Path] = []  # where the system lies that attempts copy
SIDE = 16


def copied(*parts: str) -> Path:
    """Copies parts of the system, or all of it, into the working directory; returns the folder of the copy."""
    for part in parts or tuple(each.name for each in PLACE[0].iterdir()):
        source, target = PLACE[0] / part, Path(TREE) / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    return Path(TREE)


def prepare(folder: Path) -> None:
    """Writes the system into a folder, once, in a process of its own, so that no thread of it is there afterwards."""
    PLACE[:] = [folder / TREE]
    if (folder / TREE).is_dir():
        return
    child = os.fork()
    if not child:
        code = 1
        try:
            _write(folder / f"{TREE}.tmp")
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the system of the benchmark could not be written")
    (folder / f"{TREE}.tmp").replace(folder / TREE)


def _write(place: Path) -> None:
    """Writes all parts; the paths in the configs start from the working directory of an attempt."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    PLACE[:] = [place]
    work = place.with_name("writing")
    shutil.rmtree(work, ignore_errors=True)
    (work / TREE).mkdir(parents=True)
    os.chdir(work)
    here = Path(TREE)
    rng = np.random.default_rng(0)
    for number in range(12):
        file = here / "pictures" / f"class{number % 3}" / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file)
    torch.manual_seed(0)
    instantiate_from_config(_clip()).export(here / "clip", ["flag"])
    config = model_config()
    stage = config["model"]["params"]["first_stage_config"]
    without = {**stage, "params": {**stage["params"], "ckpt_path": None}}
    write_weights(here / "first_stage.safetensors", instantiate_from_config(without).state_dict())
    model = instantiate_from_config(config["model"])
    for parameter in model.model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    write_config(here / "model" / "config.yaml", config)
    write_weights(here / "model" / "model.safetensors", model.state_dict())
    first = {**without, "target": "ldm.models.autoencoder.VQModel"}
    first["params"] = {**first["params"], "lossconfig": None}
    write_config(
        here / "train.yaml", {"model": first, "data": plain_data(), "lightning": {"trainer": {"max_steps": 1}}}
    )
    data = config["data"]["params"]
    write_config(here / "database.yaml", {name: data[name] for name in ("embedder", "database")})
    _database(here, config)
    for part in here.iterdir():
        shutil.move(str(part), place / part.name)
    shutil.rmtree(work)


def _database(here: Path, config: dict[str, Any]) -> None:
    from rdm.retrieval.builder.build import prepare_database
    from rdm.retrieval.config import load_embedder
    from rdm.retrieval.index.faiss_index import NeighbourIndex
    from rdm.sampling.pipeline import Pipeline
    from rdm.sampling.record import save
    from rdm.sampling.settings import Settings

    data = config["data"]["params"]
    database = prepare_database(embedder=load_embedder(data["embedder"]), **data["database"])
    NeighbourIndex.open(database, progress=False).save()
    pipeline = Pipeline.load(str(here / "model"))
    from rdm.sampling import ways
    from rdm.sampling.samples import sample

    request = ways.texts(pipeline, ["a flag"], k=2, seed=0)
    samples = sample(pipeline, request, Settings(steps=2))
    save(samples, pipeline, here / "made", "txt2img")


def plain_data() -> dict[str, Any]:
    """Returns the config of the pictures as training data without retrieval."""
    images = {"target": "ldm.data.ImageFolder", "params": {"root": f"{TREE}/pictures", "size": SIDE}}
    return {"target": "ldm.data.DataModule", "params": {"batch_size": 4, "train": images, "validation": images}}


def _clip() -> dict[str, Any]:
    tower = {"image_size": SIDE, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8}
    texts = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    model = {"embed_dim": 8, "vision_cfg": tower, "text_cfg": texts}
    return {"target": "rdm.models.clip.SmallCLIP", "params": {"model_cfg": model, "preprocess_cfg": preprocess}}


def model_config() -> dict[str, Any]:
    """Returns the config of the model with its data."""
    stage = {
        "double_z": False, "z_channels": 3, "resolution": SIDE, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    network = {
        "image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32, "attention_resolutions": [1],
        "num_res_blocks": 1, "channel_mult": [1], "num_head_channels": 16, "use_spatial_transformer": True,
        "context_dim": 8,
    }  # fmt: skip
    images = {"target": "ldm.data.ImageFolder", "params": {"root": f"{TREE}/pictures", "size": SIDE}}
    first = {"ddconfig": stage, "n_embed": 16, "embed_dim": 3, "ckpt_path": f"{TREE}/first_stage.safetensors"}
    model = {
        "conditioner": {"k": 2, "normalize": True, "scale": 3.0},
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": network},
        "first_stage_config": {"target": "ldm.models.autoencoder.VQModelInterface", "params": first},
    }
    embedder = {"target": "ldm.modules.encoders.modules.OpenClipEmbedder", "params": {"model": f"{TREE}/clip"}}
    data = {
        "batch_size": 4, "k": 2, "stored_k": 3, "near_duplicate": 2.0, "embedder": embedder,
        "database": {"path": f"{TREE}/database", "source": images}, "train": images, "validation": images,
    }  # fmt: skip
    return {
        "model": {"target": "rdm.models.diffusion.ddpm.RetrievalAugmentedDiffusion", "params": model},
        "data": {"target": "rdm.data.RetrievalDataModule", "params": data},
    }
