"""The weights of an IP-Adapter (Ye et al. 2023, arXiv 2308.06721): what they take, and which pipelines they fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ldm.checkpoint import read_weights
from ldm.files import located

PARTS = ("image_proj", "ip_adapter")
POOLED, HIDDEN = "pooled", "hidden"  # an adapter takes the vector of a picture, or the states of its patches
_TOKENS = 4  # of each picture, for an adapter that takes its vector


@dataclass(frozen=True)
class Adapter:
    """An IP-Adapter.

    Attributes:
        path: the file of its weights.
        takes: ``pooled`` for the vector of a picture, as the first IP-Adapter takes it; ``hidden`` for the last but one
            hidden states of the image encoder, as IP-Adapter Plus takes them.
        width: width of what it takes.
        context: width of the context tokens that it makes, which is ``cross_attention_dim`` of the pipeline.
    """

    path: Path
    takes: str
    width: int
    context: int

    @classmethod
    def open(cls, file: str | Path) -> Adapter:
        """Returns the adapter in a file.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file holds no adapter, or one for the vectors of faces.
        """
        path = located(file)
        if not path.is_file():
            raise FileNotFoundError(f"no adapter at {path}; give the file of an IP-Adapter, .safetensors or .bin")
        shapes = {name: tuple(tensor.shape) for name, tensor in _state(path)["image_proj"].items()}
        if "proj.weight" in shapes:
            return cls(path, POOLED, shapes["proj.weight"][1], shapes["proj.weight"][0] // _TOKENS)
        if "latents" in shapes and "proj_in.weight" in shapes and "proj_out.weight" in shapes:
            return cls(path, HIDDEN, shapes["proj_in.weight"][1], shapes["proj_out.weight"][0])
        if "proj.0.weight" in shapes and "proj.3.weight" in shapes and len(shapes["proj.3.weight"]) == 1:
            return cls(path, HIDDEN, shapes["proj.0.weight"][1], shapes["proj.3.weight"][0])
        raise ValueError(
            f"{path} is an adapter of a kind that pictures do not suffice for, such as one of faces; give an "
            "IP-Adapter or IP-Adapter Plus"
        )

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Returns the weights in the form that ``load_ip_adapter`` of diffusers takes."""
        return _state(self.path)


def _state(path: Path) -> dict[str, dict[str, Tensor]]:
    weights = read_weights(path)
    state = {
        part: {name.partition(".")[2]: tensor for name, tensor in weights.items() if name.startswith(f"{part}.")}
        for part in PARTS
    }
    if not all(state.values()):
        raise ValueError(f"{path} holds no {' and '.join(PARTS)}, expected the weights of an IP-Adapter")
    return state
