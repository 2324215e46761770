"""How well a first stage reconstructs: figures, and a report that states how every one was made.

Images are float32 ``[B, 3, H, W]`` in [-1, 1]. Nothing here holds more than a batch of pictures.
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

from ldm.files import file_hash, write_json
from ldm.metrics import l1, psnr, ssim
from ldm.models.first_stage import FirstStage
from ldm.models.tiling import decode_tiled, encode_tiled, tile_side
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.encoders.modules import OpenClipEmbedder
from ldm.modules.losses.lpips import LPIPS
from ldm.modules.losses.perceptual import LAYERS, ClipDistance, TorchvisionDistance
from ldm.modules.quantize import CodeUsage
from ldm.pictures import image_grid, save_png
from ldm.util import evenly, instantiate_from_config
from rdm.evaluate.features import WEIGHT_FILES, clip_name
from rdm.evaluate.metrics import Moments, frechet_distance
from rdm.evaluate.protocol import machine, versions
from rdm.retrieval.config import source_config

LOG = logging.getLogger(__name__)
EMOJI, EMOJI_CLIP = "data/emoji", "models/clip/emoji"


def perceptual_distance(name: str) -> LPIPS | ClipDistance | TorchvisionDistance:
    """Returns the network of a perceptual distance.

    Args:
        name: ``download`` or a file for LPIPS; a folder, or ``MODEL:PRETRAINED`` of open_clip, for features of CLIP;
            ``NETWORK:FILE``, such as ``resnet18:resnet18.pth``, for those of one of torchvision's networks.
    """
    network, _, file = name.partition(":")
    if network in LAYERS and file:
        return TorchvisionDistance(network, file)
    if name == "download" or name.endswith(WEIGHT_FILES):
        return LPIPS(name)
    return ClipDistance(*clip_name(name))


def evaluation_data(stage: FirstStage, data: str | None, split: str | None, size: int | None) -> dict[str, Any]:
    """Returns the config of the pictures to compare on.

    Args:
        stage: its config's validation set is taken where no path is given, else the held-out emoji pictures.
        data: a folder, Parquet files or tar shards.
        split: of Parquet files.
        size: side of the pictures in pixels; that of the config, or the resolution of the first stage, where not given.
    """
    own = (stage.config.get("data") or {}).get("params", {}).get("validation")
    if data is None and own is not None:
        chosen = {"size": size} if size else {}
        return {"target": own["target"], "params": {**(own.get("params") or {}), **chosen}}
    return source_config(data or EMOJI, size or stage.resolution, split or (None if data else "val"))


class Reconstruction:
    """Figures of a first stage's reconstructions, gathered batch by batch.

    Args:
        stage: the first stage.
        perceptual: of :func:`perceptual_distance`; none is measured where it is ``None``.
        features: embedder of the Frechet distance; none is measured where it is ``None``.
        tile: side in pixels of the tiles the pictures go through in; whole where it is ``None``.
    """

    def __init__(self, stage: FirstStage, perceptual: Any, features: Any, tile: int | None = None) -> None:
        self.model, self.perceptual, self.features, self.tile = stage.model, perceptual, features, tile
        self.real, self.made = Moments(), Moments()
        self.values: dict[str, list[float]] = {}
        codes = getattr(getattr(self.model, "quantize", None), "n_e", 0)
        self.codes = CodeUsage(codes)

    @torch.no_grad()
    def add(self, images: Tensor) -> Tensor:
        """Returns the reconstructions of ``[B, 3, H, W]``, clamped to [-1, 1], and counts them in."""
        latent = encode_tiled(self.model, images, self.tile)
        latent = latent.mode() if isinstance(latent, DiagonalGaussianDistribution) else latent
        if self.codes.size:
            self.codes.add(self.model.nearest_codes(latent)[2])
        made = decode_tiled(self.model, latent, self.tile).float().clamp(-1, 1)
        found = {"psnr": psnr(images, made), "ssim": ssim(images, made), "l1": l1(images, made)}
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual(images, made).flatten()
        for name, values in found.items():
            self.values.setdefault(name, []).extend(values.tolist())
        if self.features is not None:
            self.real.add(self.features.images(images))
            self.made.add(self.features.images(made))
        return made

    def figures(self) -> dict[str, Any]:
        """Returns every figure of the pictures so far."""
        found: dict[str, Any] = {name: sum(values) / len(values) for name, values in self.values.items()}
        if self.features is not None:
            found["rfid"] = frechet_distance(self.real, self.made)
        if self.codes.size:
            found["codebook"] = {"codes": self.codes.size, "used": int((self.codes.counts > 0).sum())}
            found["codebook"] |= {name: float(value) for name, value in self.codes.figures().items()}
        return found

    def by(self, groups: Sequence[str]) -> dict[str, dict[str, float]]:
        """Returns the mean figures of each group of pictures, and their number.

        Args:
            groups: the group of every picture so far.
        """
        found: dict[str, dict[str, float]] = {}
        for group in sorted(set(groups)):
            places = [place for place, name in enumerate(groups) if name == group]
            means = {name: sum(values[p] for p in places) / len(places) for name, values in self.values.items()}
            found[group] = {"n": len(places), **means}
        return found


def reconstruction(stage: FirstStage, args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a report of how well a first stage reconstructs, with the protocol; writes it and a picture.

    Args:
        stage: the first stage.
        args: the command line of ``scripts/evaluate.py reconstruction`` by name.

    Raises:
        ValueError: pictures, networks or tiles that do not fit.
        FileNotFoundError: no such pictures.
    """
    config = evaluation_data(stage, args["data"], args["split"], args["size"])
    try:
        dataset = instantiate_from_config(config)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; name other pictures with --data") from error
    device = next(stage.model.parameters()).device
    perceptual = None if args["perceptual"] == "none" else perceptual_distance(args["perceptual"]).to(device)
    features = None if args["features"] == "none" else OpenClipEmbedder(*clip_name(args["features"])).to(device)
    tile = tile_side(stage.model, args["tile"], args["batch_size"]) if args["tile"] else None
    gathered = Reconstruction(stage, perceptual, features, tile)
    shown, groups, digest = _run(gathered, dataset, args, device)
    n = len(groups)
    if features is not None and n <= features.dim:
        LOG.warning("%d pictures for features of width %d: the Frechet distance has little meaning", n, features.dim)
    report = {
        "figures": gathered.figures(),
        **({"by": {args["by"]: gathered.by(groups)}} if args["by"] else {}),
        "protocol": {
            "command": "reconstruction",
            "arguments": dict(args),
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
    outdir = Path(args["outdir"])
    save_png(image_grid(shown), outdir / "reconstruction.png")
    write_json(outdir / "results.json", report)
    return report


def _run(
    gathered: Reconstruction, dataset: Dataset[Any], args: Mapping[str, Any], device: torch.device
) -> tuple[dict[str, Tensor], list[str], str]:
    """Sends the pictures through; returns the columns of the picture, each one's group, and a hash of all pixels."""
    total: int = len(dataset)  # type: ignore[arg-type]
    n = min(args["n"] or total, total)
    wanted = set(evenly(n, min(args["rows"], n)))
    columns: dict[str, list[Tensor]] = {"inputs": [], "reconstructions": [], "difference": []}
    groups: list[str] = []
    digest = hashlib.sha256()
    subset = torch.utils.data.Subset(dataset, range(n))
    loader = DataLoader(subset, args["batch_size"], num_workers=args["num_workers"])
    for batch in tqdm(loader, desc="reconstructing", unit="batch"):
        images, names = batch["image"], batch.get(args["by"] or "id")
        if names is None:
            raise ValueError(f"--by {args['by']}: the pictures have only {', '.join(sorted(set(batch) - {'image'}))}")
        digest.update(images.numpy().tobytes())
        made = gathered.add(images.to(device)).cpu()
        for i in range(len(images)):
            if len(groups) in wanted:
                difference = (4 * (images[i] - made[i]).abs() - 1).clamp(-1, 1)
                for column, picture in zip(columns.values(), (images[i], made[i], difference), strict=True):
                    column.append(picture)
            groups.append(names[i])
    return {name: torch.stack(pictures) for name, pictures in columns.items()}, groups, digest.hexdigest()
