"""CLIP through open_clip: the embedder of images and texts, and the CLIP encoders of CompVis' configs."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import write_weights
from ldm.files import atomic_path, located, write_json
from ldm.pictures import with_channels
from ldm.util import nearest

LOG = logging.getLogger(__name__)
PREPROCESSING = ("clip", "compvis")
LOCAL_FORM = ("open_clip_config.json", "open_clip_model.safetensors")  # the files of a folder of open_clip's


class OpenClipEmbedder(nn.Module):
    """Computes CLIP vectors of images and texts, and feature maps of images. The vectors are raw (not normalised).

    Args:
        model: an open_clip architecture (``ViT-B-32-quickgelu``) or a folder in open_clip's local-directory form.
        pretrained: open_clip's tag (``openai``) or a file of weights; must be absent for a folder.
        preprocessing: ``clip`` scales the shorter side to the model's size with antialiasing and crops the centre, as
            CLIP itself does. ``compvis`` resizes the whole picture to a square of that size without antialiasing, as
            for CompVis' released databases. The preprocessing is part of the fingerprint.

    Raises:
        ValueError: an unknown architecture, tag or preprocessing, or the weights cannot be loaded.
        FileNotFoundError: there is no such folder.
    """

    clip: Any
    mean: Tensor
    std: Tensor

    def __init__(self, model: str, pretrained: str | None = None, preprocessing: str = "clip") -> None:
        super().__init__()
        if preprocessing not in PREPROCESSING:
            raise ValueError(f"preprocessing: got '{preprocessing}', expected one of {', '.join(PREPROCESSING)}")
        self.clip, self.tokenizer = _load_open_clip(model, pretrained)
        self.preprocessing, self.model = preprocessing, model
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
            ValueError: the images have another shape.
        """
        return self.clip.encode_image(self._pixels(images)).float()

    @torch.no_grad()
    def tokens(self, images: Tensor, grid: int) -> Tensor:
        """Returns the feature map of the vision tower, pooled to a grid of tokens, row by row.

        The map is the third stage of CLIP's ResNets, else the patch tokens or the stage at the end of the tower.

        Args:
            images: ``[B, 3, H, W]`` in [-1, 1].
            grid: side g of the grid, at most that of the map. Where it does not divide it, the areas overlap.

        Returns:
            Raw tokens ``[B, g * g, D'] float32``.

        Raises:
            ValueError: the images have another shape, the tower has no map, or the grid is larger than it.
        """
        found = self._feature_map(self._pixels(images)).float()
        height, width = found.shape[2:]
        if not 1 <= grid <= min(height, width):
            raise ValueError(
                f"grid: got {grid}, expected 1 to {min(height, width)}, the side of the feature map of {self.name}"
            )
        return F.adaptive_avg_pool2d(found, grid).flatten(2).transpose(1, 2).contiguous()

    def _feature_map(self, pixels: Tensor) -> Tensor:
        """Returns the feature map ``[B, D', h, w]`` of normalised pixels."""
        tower = self.clip.visual
        if not hasattr(getattr(tower, "trunk", tower), "forward_intermediates"):
            raise ValueError(
                f"the vision tower of {self.name} ({type(tower).__name__}) has no feature map; use another CLIP, or "
                "neighbours without a grid of tokens"
            )
        resnet = hasattr(tower, "layer3")  # its stages are the stem and layers 1 to 4
        options: dict[str, Any] = {"indices": [3] if resnet else 1, "intermediates_only": True}
        if not resnet:  # an attention pooling has a norm of its own, which is not that of the patch tokens
            options["normalize_intermediates"] = getattr(tower, "attn_pool", None) is None
        return tower.forward_intermediates(pixels, **options)["image_intermediates"][-1]

    def _pixels(self, images: Tensor) -> Tensor:
        """Returns images at the size and with the mean and deviation that the model expects."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, expected [B, 3, H, W], or [B, 1, H, W] for grey"
            )
        pixels = self.resize(with_channels(images, 3).to(self.mean)).clamp(-1, 1) / 2 + 0.5
        return (pixels - self.mean) / self.std

    def resize(self, images: Tensor) -> Tensor:
        """Returns images ``[B, 3, S, S]`` at the model's size S, resized as ``preprocessing`` says."""
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
            ValueError: a text has more tokens than the model's context length.
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

    def save(self, folder: str | Path) -> None:
        """Writes the model into a folder in open_clip's local form, which ``model`` of this class reads.

        Raises:
            ValueError: it reads texts with a tokenizer that open_clip does not bring along.
        """
        import open_clip

        folder, source = Path(folder), located(self.model)
        if source.is_dir():
            for name in LOCAL_FORM:
                with atomic_path(folder / name) as temporary:
                    shutil.copyfile(source / name, temporary)
            return
        described = open_clip.get_model_config(self.model)
        if name := described["text_cfg"].get("hf_tokenizer_name"):
            raise ValueError(f"embedder {self.name} reads texts with the tokenizer {name}, expected open_clip's own")
        statistics = {name: getattr(self, name).flatten().tolist() for name in ("mean", "std")}
        write_json(folder / LOCAL_FORM[0], {"model_cfg": described, "preprocess_cfg": statistics})
        write_weights(folder / LOCAL_FORM[1], self.clip.state_dict())


class FrozenCLIPTextEmbedder(nn.Module):
    """CompVis' text encoder: the context of a text is its CLIP vector, repeated ``n_repeat`` times.

    Args:
        version: OpenAI's name of a model (``ViT-L/14``), or ``model`` of :class:`OpenClipEmbedder`.
        device: initial device of the model, which moves with the module around it.
        max_length: must be the model's context length, or None; the context length of OpenAI's models is 77.
        n_repeat: number of context tokens, all of which are the vector.
        normalize: scale vectors to length 1.
        pretrained: as for :class:`OpenClipEmbedder`; by default OpenAI's weights if ``version`` is OpenAI's name.
    """

    reads = "texts"

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
            raise ValueError(f"max_length: got {max_length}, expected {read}, the context length of {version}")
        self.n_repeat, self.normalize = n_repeat, normalize

    def forward(self, text: str | Sequence[str]) -> Tensor:
        """Returns vectors ``[B, D] float32`` of texts."""
        vectors = self.embedder.texts([text] if isinstance(text, str) else text)
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def encode(self, text: str | Sequence[str]) -> Tensor:
        """Returns context tokens ``[B, n_repeat, D] float32`` of texts."""
        return self(text)[:, None].expand(-1, self.n_repeat, -1)


class FrozenClipImageEmbedder(nn.Module):
    """CompVis' image embedder, with CompVis' preprocessing.

    Args:
        model: OpenAI's name of a model (``ViT-B/32``), or ``model`` of :class:`OpenClipEmbedder`.
        jit: must be false.
        device: initial device of the model, which moves with the module around it.
        antialias: must be false, as for all of CompVis' databases.
        pretrained: as for :class:`OpenClipEmbedder`; by default OpenAI's weights if ``model`` is OpenAI's name.
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
                f"got jit={jit}, antialias={antialias}; expected false; use OpenClipEmbedder for antialiasing"
            )
        self.embedder = OpenClipEmbedder(*openai_model(model, pretrained), preprocessing="compvis").to(device)

    def forward(self, images: Tensor) -> Tensor:
        """Returns raw vectors ``[B, D] float32`` of images ``[B, 3, H, W]`` in [-1, 1]."""
        return self.embedder.images(images)


def openai_model(name: str, pretrained: str | None) -> tuple[str, str | None]:
    """Returns ``model`` and ``pretrained`` of :class:`OpenClipEmbedder` for OpenAI's name of a model.

    Other names and folders are returned unchanged.
    """
    if not name.startswith(("ViT-", "RN")) or located(name).is_dir() or "quickgelu" in name:
        return name, pretrained
    return f"{name.replace('/', '-').replace('@', '-').removesuffix('px')}-quickgelu", pretrained or "openai"


def _load_open_clip(model: str, pretrained: str | None) -> tuple[Any, Any]:
    import open_clip

    folder = located(model)
    if folder.is_dir() or "/" in model:
        if pretrained is not None:
            raise ValueError(f"the folder {model} holds its own weights; got pretrained={pretrained}, expected none")
        if not (folder / LOCAL_FORM[0]).is_file():
            raise FileNotFoundError(
                f"no CLIP model in {model}: expected {' and '.join(LOCAL_FORM)}; "
                "train one with main.py --base configs/clip/emoji.yaml -t, or correct the embedder's 'model'"
            )
        return open_clip.create_model(f"local-dir:{folder}"), open_clip.get_tokenizer(f"local-dir:{folder}")
    if model not in open_clip.list_models():
        known = open_clip.list_models()
        remedy = nearest(model, known) or "; give the folder of a model, or a name that open_clip.list_models() returns"
        raise ValueError(f"open_clip has no model '{model}'{remedy}")
    if pretrained is None:
        raise ValueError(f"embedder {model} has no weights; set 'pretrained' to a tag or a file")
    if pretrained == "openai" and f"{model}-quickgelu" in open_clip.list_models():
        raise ValueError(f"OpenAI's weights were trained with QuickGELU; name the model {model}-quickgelu, got {model}")
    if located(pretrained).is_file():
        pretrained = str(located(pretrained))
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
            "open_clip_model.safetensors on another machine and set 'pretrained' to its path, or use models/clip/emoji"
        ) from error
