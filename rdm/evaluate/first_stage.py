"""Measures the reconstructions of a first stage and reports the figures with the whole protocol.

Images are float32 ``[B, 3, H, W]`` in [-1, 1]. No function holds more than a batch of pictures.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm.data.decode import Size
from ldm.files import file_hash, write_json
from ldm.metrics import l1, psnr, ssim
from ldm.models.first_stage import FirstStage
from ldm.models.tiling import decode_tiled, encode_tiled, tile_side
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.encoders import efficientnet
from ldm.modules.encoders.modules import OpenClipEmbedder
from ldm.modules.losses.lpips import LPIPS
from ldm.modules.losses.perceptual import LAYERS, ClipDistance, EfficientNetDistance, TorchvisionDistance
from ldm.modules.quantize import CodeUsage
from ldm.pictures import image_grid, save_png
from ldm.util import evenly, instantiate_from_config
from rdm.evaluate.features import WEIGHT_FILES, clip_name
from rdm.evaluate.metrics import Moments, frechet_distance
from rdm.evaluate.options import ReconstructionOptions
from rdm.evaluate.protocol import machine, versions
from rdm.retrieval.config import source_config

LOG = logging.getLogger(__name__)
EMOJI, EMOJI_CLIP = "data/emoji", "models/clip/emoji"


def perceptual_distance(name: str) -> LPIPS | ClipDistance | EfficientNetDistance | TorchvisionDistance:
    """Returns the network of a perceptual distance.

    Args:
        name: ``download`` or a file for LPIPS; a folder, or ``MODEL:PRETRAINED`` of open_clip, for features of CLIP;
            ``efficientnet_lite0``, alone or with ``:FILE``, for those of this network; ``NETWORK:FILE``, such as
            ``resnet18:resnet18.pth``, for those of one of torchvision's networks.
    """
    network, _, file = name.partition(":")
    if network == efficientnet.NAME:
        return EfficientNetDistance(file or None)
    if network in LAYERS and file:
        return TorchvisionDistance(network, file)
    if name == "download" or name.endswith(WEIGHT_FILES):
        return LPIPS(name)
    return ClipDistance(*clip_name(name))


def evaluation_data(stage: FirstStage, data: str | None, split: str | None, size: Size | None) -> dict[str, Any]:
    """Returns the config of the pictures to reconstruct.

    Args:
        stage: the first stage.
        data: a folder, Parquet files or tar shards. If it is None, the validation set of the stage's config is used,
            or the held-out emoji pictures if the config has none.
        split: split of Parquet files.
        size: size of the pictures in pixels. If it is None, that of the config, or the resolution of the first stage.
    """
    validation = (stage.config.get("data") or {}).get("params", {}).get("validation")
    if data is None and validation is not None:
        override = {"size": size} if size else {}
        return {"target": validation["target"], "params": {**(validation.get("params") or {}), **override}}
    config = source_config(data or EMOJI, size or stage.resolution, split or (None if data else "val"))
    channels = getattr(stage.model, "in_channels", 3)
    return config if channels == 3 else {**config, "params": {**config["params"], "channels": channels}}


class Reconstruction:
    """Computes the figures of a first stage's reconstructions, batch by batch.

    Args:
        stage: the first stage.
        perceptual: network of :func:`perceptual_distance`; ``None`` leaves the perceptual distance out.
        features: embedder whose features the Frechet distance uses; ``None`` leaves the Frechet distance out.
        tile: side in pixels of the tiles in which pictures are encoded and decoded; ``None`` takes them whole.
    """

    def __init__(self, stage: FirstStage, perceptual: Any, features: Any, tile: int | None = None) -> None:
        self.model, self.perceptual, self.features, self.tile = stage.model, perceptual, features, tile
        self.inputs, self.reconstructions = Moments(), Moments()
        self.values: dict[str, list[float]] = {}
        codes = getattr(getattr(self.model, "quantize", None), "n_e", 0)
        self.codes = CodeUsage(codes)

    @torch.no_grad()
    def add(self, images: Tensor) -> Tensor:
        """Reconstructs images ``[B, 3, H, W]``, adds them to the figures, and returns them clamped to [-1, 1]."""
        latent = encode_tiled(self.model, images, self.tile)
        latent = latent.mode() if isinstance(latent, DiagonalGaussianDistribution) else latent
        if self.codes.size:
            self.codes.add(self.model.nearest_codes(latent)[2])
        decoded = decode_tiled(self.model, latent, self.tile).float().clamp(-1, 1)
        figures = {"psnr": psnr(images, decoded), "ssim": ssim(images, decoded), "l1": l1(images, decoded)}
        if self.perceptual is not None:
            figures["perceptual"] = self._distance(images, decoded).flatten()
        for name, values in figures.items():
            self.values.setdefault(name, []).extend(values.tolist())
        if self.features is not None:
            self.inputs.add(self.features.images(images))
            self.reconstructions.add(self.features.images(decoded))
        return decoded

    def _distance(self, images: Tensor, decoded: Tensor) -> Tensor:
        """Returns the perceptual distances ``[B, 1, 1, 1]`` or ``[B]``.

        Raises:
            ValueError: the network makes a map without pixels of such small pictures.
        """
        try:
            return self.perceptual(images, decoded)
        except RuntimeError as error:
            if "too small" not in str(error):
                raise
            size = " x ".join(str(side) for side in images.shape[2:])
            raise ValueError(
                f"--perceptual: pictures of {size} pixels are too small for {type(self.perceptual).__name__}; give "
                "another network, or larger pictures with --size"
            ) from error

    def figures(self) -> dict[str, Any]:
        """Returns the figures of all pictures that were added."""
        figures: dict[str, Any] = {name: sum(values) / len(values) for name, values in self.values.items()}
        if self.features is not None:
            figures["rfid"] = frechet_distance(self.inputs, self.reconstructions)
        if self.codes.size:
            figures["codebook"] = {"codes": self.codes.size, "used": int((self.codes.counts > 0).sum())}
            figures["codebook"] |= {name: float(value) for name, value in self.codes.figures().items()}
        return figures

    def by(self, groups: Sequence[str]) -> dict[str, dict[str, float]]:
        """Returns the mean figures of each group of pictures, and the number of its pictures.

        Args:
            groups: the group of each picture, in the order in which they were added.
        """
        figures: dict[str, dict[str, float]] = {}
        for group in sorted(set(groups)):
            places = [place for place, name in enumerate(groups) if name == group]
            means = {name: sum(values[p] for p in places) / len(places) for name, values in self.values.items()}
            figures[group] = {"n": len(places), **means}
        return figures


def reconstruction(stage: FirstStage, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Measures the reconstructions of a first stage; writes the report and a picture, and returns the report.

    Args:
        stage: the first stage.
        arguments: the command line of ``scripts/evaluate.py reconstruction``, by name.

    Raises:
        ValueError: pictures, networks or tiles do not fit, or an option is missing.
        FileNotFoundError: the pictures do not exist.
    """
    options = ReconstructionOptions.of_command_line(arguments)
    config = evaluation_data(stage, options.data, options.split, options.size)
    try:
        dataset = instantiate_from_config(config)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; name other pictures with --data") from error
    device = next(stage.model.parameters()).device
    perceptual = None if options.perceptual == "none" else perceptual_distance(options.perceptual).to(device)
    features = None if options.features == "none" else OpenClipEmbedder(*clip_name(options.features)).to(device)
    tile = tile_side(stage.model, options.tile, options.batch_size) if options.tile else None
    measured = Reconstruction(stage, perceptual, features, tile)
    shown, groups, digest = _run(measured, dataset, options, device)
    n = len(groups)
    if features is not None and n <= features.dim:
        LOG.warning("%d pictures for features of width %d: the Frechet distance has little meaning", n, features.dim)
    report = {
        "figures": measured.figures(),
        **({"by": {options.by: measured.by(groups)}} if options.by else {}),
        "protocol": {
            "command": "reconstruction",
            "arguments": dict(arguments),
            "model": {"path": str(stage.file), "sha256": file_hash(stage.file), "class": type(stage.model).__name__},
            "data": {"config": config, "n": n, "pixels_sha256": digest},
            "preprocessing": "shorter side resized to `size` with antialiased bicubic, centre cut out, [-1, 1]",
            "reconstruction": f"float32, {f'tiles of {tile} pixels' if tile else 'whole'}, mode of a KL posterior, "
            "clamped to [-1, 1], not rounded",
            "psnr": "dB by picture, peak 1 in [0, 1], then the mean",
            "ssim": "torchmetrics, Gaussian window 11, sigma 1.5, reflected borders, in [0, 1], by picture, then mean",
            "perceptual": getattr(perceptual, "name", None),
            "rfid": None if features is None else {"features": features.name, "fingerprint": features.fingerprint},
            "versions": versions(),
            "machine": machine(device),
        },
    }
    outdir = Path(options.outdir)
    save_png(image_grid(shown), outdir / "reconstruction.png")
    write_json(outdir / "results.json", report)
    return report


def _run(
    measured: Reconstruction, dataset: Dataset[Any], options: ReconstructionOptions, device: torch.device
) -> tuple[dict[str, Tensor], list[str], str]:
    """Measures all pictures.

    Returns:
        the columns of the picture of examples, the group of each picture, and a hash of all pixels.
    """
    total: int = len(dataset)  # type: ignore[arg-type]
    n = min(options.n or total, total)
    examples = set(evenly(n, min(options.rows, n)))
    columns: dict[str, list[Tensor]] = {"inputs": [], "reconstructions": [], "difference": []}
    groups: list[str] = []
    digest = hashlib.sha256()
    subset = torch.utils.data.Subset(dataset, range(n))
    loader = DataLoader(subset, options.batch_size, num_workers=options.num_workers)
    for batch in tqdm(loader, desc="reconstructing", unit="batch"):
        images, names = batch["image"], batch.get(options.by or "id")
        if names is None:
            raise ValueError(f"--by {options.by}: the pictures have only {', '.join(sorted(set(batch) - {'image'}))}")
        digest.update(images.numpy().tobytes())
        decoded = measured.add(images.to(device)).cpu()
        for i in range(len(images)):
            if len(groups) in examples:
                difference = (4 * (images[i] - decoded[i]).abs() - 1).clamp(-1, 1)
                for column, picture in zip(columns.values(), (images[i], decoded[i], difference), strict=True):
                    column.append(picture)
            groups.append(names[i])
    return {name: torch.stack(pictures) for name, pictures in columns.items()}, groups, digest.hexdigest()
