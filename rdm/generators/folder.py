"""The folder of a pipeline of diffusers, as its ``save_pretrained`` writes it; only its small files are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.files import located, read_json
from rdm.generators.library import diffusers_library, quiet, takes_image_prompts


def find_pipeline(name: str) -> Path:
    """Returns the folder of a pipeline, which is downloaded if the name is one of the hub.

    Raises:
        FileNotFoundError: there is neither a folder nor a pipeline of this name.
        ValueError: diffusers is not installed.
    """
    folder = located(name)
    if (folder / "model_index.json").is_file():
        return folder
    if folder.is_dir():
        raise FileNotFoundError(f"no model_index.json in {folder}; give the folder of a whole pipeline of diffusers")
    diffusers = diffusers_library()
    try:
        with quiet():
            return Path(diffusers.DiffusionPipeline.download(name))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FileNotFoundError(
            f"no pipeline at {folder.absolute()}, and none of this name can be had from the hub ({reason}); give the "
            "folder of a pipeline of diffusers"
        ) from error


def variant_of(folder: Path) -> str | None:
    """Returns ``fp16`` if the U-Net is there in this variant only."""
    files = [file.name for pattern in ("*.safetensors", "*.bin") for file in (folder / "unet").glob(pattern)]
    return "fp16" if files and all(".fp16." in name for name in files) else None


def config_of(folder: Path, part: str) -> dict[str, Any]:
    """Returns the config of a network of a pipeline.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    file = folder / part / "config.json"
    if not file.is_file():
        raise ValueError(f"pipeline {folder} has no {file.name} in {part}; give a pipeline of Stable Diffusion or SDXL")
    return read_json(file, "give the whole folder of a pipeline")


def class_of(folder: Path) -> str:
    """Returns the name of the class that a pipeline was saved as, if it takes image prompts.

    Raises:
        ValueError: it takes none.
    """
    name = str(read_json(folder / "model_index.json", "").get("_class_name"))
    if not takes_image_prompts(name):
        raise ValueError(
            f"{folder} is a {name}, which takes no image prompts by an IP-Adapter; give a pipeline of Stable Diffusion "
            "or SDXL"
        )
    return name
