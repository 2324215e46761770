"""CLIP through open_clip: the embedder, and the encoders of CompVis' configs over it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.util import nearest

LOG = logging.getLogger(__name__)
PREPROCESSING = ("clip", "compvis")


class OpenClipEmbedder(nn.Module):
    """Images and texts to CLIP vectors, raw (not normalised).

    Args:
        model: an open_clip architecture (``ViT-B-32-quickgelu``) or a folder in open_clip's local-directory form.
        pretrained: open_clip's tag (``openai``) or a weights file; must be absent for a folder.
        preprocessing: ``clip`` scales the shorter side to the model's size with antialiasing and cuts the centre out,
            as CLIP itself does; ``compvis`` squeezes the whole picture to that size without antialiasing, as the
            released databases of CompVis were made. It is part of the fingerprint.

    Raises:
        ValueError: unknown architecture, tag or preprocessing; weights that cannot be had.
        FileNotFoundError: no such folder.
    """

    clip: Any
    mean: Tensor
    std: Tensor

    def __init__(self, model: str, pretrained: str | None = None, preprocessing: str = "clip") -> None:
        super().__init__()
        if preprocessing not in PREPROCESSING:
            raise ValueError(f"preprocessing: got '{preprocessing}', expected one of {', '.join(PREPROCESSING)}")
        self.clip, self.tokenizer = _load_open_clip(model, pretrained)
        self.preprocessing = preprocessing
        visual = self.clip.visual
        size = visual.image_size
        self.image_size = int(size[0] if isinstance(size, tuple | list) else size)
        self.name = model if pretrained is None else f"{model}/{pretrained}"
        self.register_buffer("mean", torch.tensor(visual.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(visual.image_std).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)
        self.fingerprint = self._hash()
        self.dim = int(self.texts([""]).shape[1])

    def _hash(self) -> str:
        digest = hashlib.sha256(json.dumps([self.preprocessing, self.image_size]).encode())
        for name, tensor in sorted([*self.clip.state_dict().items(), ("mean", self.mean), ("std", self.std)]):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Returns raw vectors ``[B, D] float32`` of images ``[B, 3, H, W]`` in [-1, 1].

        Raises:
            ValueError: another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: got shape {tuple(images.shape)}, expected [B, 3, H, W]")
        pixels = self.resize(images.to(self.mean)).clamp(-1, 1) / 2 + 0.5
        return self.clip.encode_image((pixels - self.mean) / self.std).float()

    def resize(self, images: Tensor) -> Tensor:
        """Returns images ``[B, 3, S, S]`` at the model's size S, in the configured way."""
        size = self.image_size
        if images.shape[2:] == (size, size):
            return images
        if self.preprocessing == "compvis":
            from kornia.geometry.transform import resize

            return resize(images, (size, size), interpolation="bicubic", align_corners=True, antialias=False)
        scale = size / min(images.shape[2:])
        height, width = (max(size, round(side * scale)) for side in images.shape[2:])
        images = F.interpolate(images, (height, width), mode="bicubic", antialias=True)
        top, left = (height - size) // 2, (width - size) // 2
        return images[:, :, top : top + size, left : left + size]

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Returns raw vectors ``[B, D] float32`` of texts.

        Raises:
            ValueError: a text is longer than the model reads.
        """
        limit = self.tokenizer.context_length
        if hasattr(self.tokenizer, "encode"):
            for text in texts:
                length = len(self.tokenizer.encode(text)) + 2
                if length > limit:
                    raise ValueError(
                        f"the text '{text[:40]}...' has {length} tokens, the model reads {limit}; shorten it"
                    )
        return self.clip.encode_text(self.tokenizer(list(texts)).to(self.mean.device)).float()


class FrozenCLIPTextEmbedder(nn.Module):
    """CompVis' text condition: one CLIP vector a text, ``n_repeat`` times.

    Args:
        version: OpenAI's name of a model (``ViT-L/14``), or what :class:`OpenClipEmbedder` takes as ``model``.
        device: where the model is used first; it moves with the module around it.
        max_length: tokens that the model is expected to read of a text; 77 for all of OpenAI's.
        n_repeat: number of context tokens made of the vector.
        normalize: scale vectors to length 1.
        pretrained: as of :class:`OpenClipEmbedder`; OpenAI's weights where ``version`` is OpenAI's name.
    """

    def __init__(
        self,
        version: str = "ViT-L/14",
        device: str = "cpu",
        max_length: int | None = None,
        n_repeat: int = 1,
        normalize: bool = True,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        self.embedder = OpenClipEmbedder(*openai_model(version, pretrained)).to(device)
        read = self.embedder.tokenizer.context_length
        if max_length not in (None, read):
            raise ValueError(f"max_length: got {max_length}, expected {read}, the length {version} reads")
        self.n_repeat, self.normalize = n_repeat, normalize

    def forward(self, text: str | Sequence[str]) -> Tensor:
        """Returns vectors ``[B, D] float32`` of texts."""
        vectors = self.embedder.texts([text] if isinstance(text, str) else text)
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def encode(self, text: str | Sequence[str]) -> Tensor:
        """Returns context tokens ``[B, n_repeat, D] float32`` of texts."""
        return self(text)[:, None].expand(-1, self.n_repeat, -1)


class FrozenClipImageEmbedder(nn.Module):
    """CompVis' embedder of images, with its preprocessing.

    Args:
        model: OpenAI's name of a model (``ViT-B/32``), or what :class:`OpenClipEmbedder` takes as ``model``.
        jit: must be false.
        device: where the model is used first; it moves with the module around it.
        antialias: must be false, as in all databases of CompVis.
        pretrained: as of :class:`OpenClipEmbedder`; OpenAI's weights where ``model`` is OpenAI's name.
    """

    def __init__(
        self,
        model: str,
        jit: bool = False,
        device: str = "cpu",
        antialias: bool = False,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        if jit or antialias:
            raise ValueError(
                f"got jit={jit}, antialias={antialias}; expected false: use OpenClipEmbedder, which antialiases"
            )
        self.embedder = OpenClipEmbedder(*openai_model(model, pretrained), preprocessing="compvis").to(device)

    def forward(self, images: Tensor) -> Tensor:
        """Returns raw vectors ``[B, D] float32`` of images ``[B, 3, H, W]`` in [-1, 1]."""
        return self.embedder.images(images)


def openai_model(name: str, pretrained: str | None) -> tuple[str, str | None]:
    """Returns ``model`` and ``pretrained`` of :class:`OpenClipEmbedder` for OpenAI's name of a model.

    Other names and folders are returned as they are.
    """
    if not name.startswith(("ViT-", "RN")) or Path(name).is_dir() or "quickgelu" in name:
        return name, pretrained
    return f"{name.replace('/', '-').replace('@', '-').removesuffix('px')}-quickgelu", pretrained or "openai"


def _load_open_clip(model: str, pretrained: str | None) -> tuple[Any, Any]:
    import open_clip

    if Path(model).is_dir() or "/" in model:
        if pretrained is not None:
            raise ValueError(f"the folder {model} holds its own weights; got pretrained={pretrained}, expected none")
        if not (Path(model) / "open_clip_config.json").is_file():
            raise FileNotFoundError(
                f"no CLIP model in {model}: expected open_clip_config.json and open_clip_model.safetensors; "
                "train one with main.py --base configs/clip/emoji.yaml -t, or correct the embedder's 'model'"
            )
        return open_clip.create_model(f"local-dir:{model}"), open_clip.get_tokenizer(f"local-dir:{model}")
    if model not in open_clip.list_models():
        raise ValueError(f"open_clip has no model '{model}'{nearest(model, open_clip.list_models())}")
    if pretrained is None:
        raise ValueError(f"embedder {model} has no weights; give 'pretrained': a tag or a file")
    if pretrained == "openai" and f"{model}-quickgelu" in open_clip.list_models():
        raise ValueError(f"OpenAI's weights were trained with QuickGELU; name the model {model}-quickgelu, got {model}")
    try:
        return open_clip.create_model(model, pretrained, require_pretrained=True), open_clip.get_tokenizer(model)
    except (RuntimeError, OSError, ValueError) as error:
        tags = open_clip.list_pretrained_tags_by_model(model)
        if pretrained not in tags and not Path(pretrained).is_file():
            raise ValueError(
                f"{model} has no weights '{pretrained}'; expected a file or one of {', '.join(tags)}"
            ) from error
        raise ValueError(
            f"could not load the weights '{pretrained}' of {model} ({type(error).__name__}); offline, download "
            "open_clip_model.safetensors elsewhere and give its path as 'pretrained', or use models/clip/emoji"
        ) from error
