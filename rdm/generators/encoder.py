"""The image encoder of an adapter: the vision tower of a CLIP in the form of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.files import located, read_json
from rdm.generators.adapter import POOLED, Adapter
from rdm.generators.library import transformers_library
from rdm.retrieval.embedder import Embedder

FOLDER = "image_encoder"
SAME = 0.02  # largest difference of two vectors of one picture, as a share of their length, if one network made both


def find_encoder(adapter: Adapter, pipeline: Path, given: str | Path | None = None) -> Path | None:
    """Returns the folder of the image encoder of an adapter; None if there is none.

    Args:
        adapter: the adapter. A folder ``image_encoder`` beside its file is the first place.
        pipeline: the folder of the pipeline, which is the second place.
        given: the folder, if a user names it.

    Raises:
        FileNotFoundError: the given folder holds no encoder.
        ValueError: the encoder makes vectors of another width than the adapter takes.
    """
    places = [located(given)] if given is not None else [adapter.path.parent / FOLDER, pipeline / FOLDER]
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None:
        if given is not None:
            raise FileNotFoundError(f"no image encoder at {places[0]}; expected a folder with config.json and weights")
        return None
    config = read_json(found / "config.json", "give the folder of a CLIP vision tower with a projection")
    config = config.get("vision_config", config)
    name = "projection_dim" if adapter.takes == POOLED else "hidden_size"
    if config.get(name) != adapter.width:
        raise ValueError(
            f"image encoder {found} makes vectors of width {config.get(name)} ({name}), adapter {adapter.path} takes "
            f"{adapter.width}; give the encoder of this adapter as --image_encoder FOLDER"
        )
    return found


class ImageEncoder:
    """Embeds pictures for an adapter. Each one is embedded alone, so that its bits do not depend on others.

    Args:
        folder: the folder of the encoder.
        adapter: what it embeds for.
        pipeline: the folder of the pipeline, whose preprocessing of pictures is used if it has one.
        device: where it computes.
        dtype: the type of its weights.
    """

    def __init__(self, folder: Path, adapter: Adapter, pipeline: Path, device: str, dtype: torch.dtype) -> None:
        transformers = transformers_library()
        tower = transformers.CLIPVisionModelWithProjection
        self.model = tower.from_pretrained(folder, dtype=dtype, local_files_only=True).eval().requires_grad_(False)
        self.takes, self.device, self.dtype = adapter.takes, device, dtype
        self.side = int(self.model.config.image_size)
        own = pipeline / "feature_extractor"
        if (own / "preprocessor_config.json").is_file():
            self.processor = transformers.CLIPImageProcessor.from_pretrained(own, local_files_only=True)
        else:  # as diffusers does for an adapter
            self.processor = transformers.CLIPImageProcessor(size=self.side, crop_size=self.side)
        self._nothing: Tensor | None = None

    def embed(self, picture: np.ndarray) -> Tensor:
        """Returns what the adapter takes of a picture ``[H, W, 3] uint8``: ``[D]``, or states ``[T, D]``."""
        pixels = self.processor(Image.fromarray(picture), return_tensors="pt").pixel_values
        return self._of(pixels)

    def nothing(self) -> Tensor:
        """Returns what stands for no picture in classifier-free guidance: zeros, or the states of a grey picture."""
        if self._nothing is None:
            found = self._of(torch.zeros(1, 3, self.side, self.side))
            self._nothing = torch.zeros_like(found) if self.takes == POOLED else found
        return self._nothing

    @torch.inference_mode()
    def _of(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.device, self.dtype)
        model = self.model.to(self.device)
        if self.takes == POOLED:
            return model(pixels).image_embeds[0].clone()
        return model(pixels, output_hidden_states=True).hidden_states[-2][0].clone()

    def release(self) -> None:
        """Moves the weights to the memory of the CPU."""
        self.model.to("cpu")

    def is_that_of(self, embedder: Embedder) -> bool:
        """Returns whether an embedder of a database gives the vectors of this encoder.

        Both embed one picture, which has the size that both see, so that no scaling is compared.
        """
        coarse = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(0))
        image = torch.nn.functional.interpolate(coarse, (self.side, self.side), mode="bilinear")
        picture = (image[0] * 255).round().to(torch.uint8)
        own = self.embed(picture.permute(1, 2, 0).numpy()).float().cpu()
        device = next((p.device for p in getattr(embedder, "parameters", list)()), torch.device("cpu"))
        other = embedder.images((picture[None].float() / 127.5 - 1).to(device))[0].float().cpu()
        return own.shape == other.shape and float((own - other).norm()) <= SAME * float(own.norm())
