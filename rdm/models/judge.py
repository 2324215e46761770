"""A judge of generated pictures: a classifier that tells from the pixels alone which concept a picture shows.

It shares nothing with CLIP, which retrieval uses, so that a sample is not judged by what it was made with. Training
replaces some pictures by their reconstruction by a first stage: a judge that never saw its artefacts would count them
against every sample.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import load_weights, read_metadata, read_weights, write_weights
from ldm.config import read_config, write_config
from ldm.data.augment import add_noise, move, recolour, soften
from ldm.files import located
from ldm.lr_scheduler import StepSchedule
from ldm.models.first_stage import load_first_stage
from ldm.models.tiling import reconstruct
from ldm.models.training_data import check_training_data
from ldm.parallel import counted, gathered, gathered_items, means, own
from ldm.util import instantiate_from_config

LOG = logging.getLogger(__name__)
WEIGHTS, CONFIG = "model.safetensors", "config.yaml"  # of an export
TARGET = "rdm.models.judge.Judge"
_RECONSTRUCTED_AT_ONCE = 16


class Block(nn.Module):
    """Two 3x3 convolutions with a residual connection (He et al. 2016).

    Args:
        channels: of the input.
        width: channels of the output.
        stride: of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels, width, 3, stride)
        self.second = _convolution(width, width, 3, 1)
        nn.init.zeros_(self.second[1].weight)  # type: ignore[arg-type]  # at first, a block passes its input on
        self.skip = nn.Sequential()
        if stride > 1:
            self.skip.append(nn.AvgPool2d(stride, ceil_mode=True))
        if channels != width:
            self.skip.append(_convolution(channels, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, width, H / stride, W / stride]``."""
        return F.relu(self.skip(x) + self.second(F.relu(self.first(x))))


def _convolution(channels: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width))


class Judge(pl.LightningModule):
    """A small residual network that classifies pictures by concept.

    Args:
        classes: number of concepts. Which they are is read from the data set when training starts.
        size: side in pixels of the pictures that the network sees; others are scaled.
        stem: channels after the first convolution, which halves the sides; the second one halves them again.
        widths: channels of each stage; each but the first halves the sides.
        depths: residual blocks of each stage.
        features: channels before the mean over all pixels.
        learning_rate: rate of AdamW after a linear warm-up.
        weight_decay: for matrices; vectors have none.
        warmup_steps: length of the warm-up, in steps.
        decay_steps: how many steps before the last one the rate begins to fall, linearly to zero.
        coarse_steps: how many steps see pictures of half the side, which cost a quarter (progressive resizing, as in
            Tan and Le 2021).
        label_smoothing: share of the target that is spread evenly over all concepts.
        first_stage: folder of the first stage that reconstructs training pictures; None reconstructs none.
        reconstructed: share of the pictures that are reconstructed; each is shown so every other time.
        seed: of the augmentation; step n draws from (seed, n), so a resumed run repeats nothing.

    Attributes:
        concepts: the name of each concept, in the order of the classes.
        data_configs: of a judge that was loaded, the configs of the data sets that it was trained on, by name.
    """

    def __init__(
        self,
        classes: int,
        size: int = 64,
        stem: int = 16,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (1, 1, 1),
        features: int = 512,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.05,
        warmup_steps: int = 100,
        decay_steps: int = 1000,
        coarse_steps: int = 0,
        label_smoothing: float = 0.1,
        first_stage: str | None = None,
        reconstructed: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths):
            raise ValueError(f"depths: got {len(depths)} stages, expected {len(widths)}, as many as widths")
        if not 0 <= reconstructed <= 1:
            raise ValueError(f"reconstructed: got {reconstructed}, expected a share from 0 to 1")
        architecture = {"size": size, "stem": stem, "features": features}
        self.architecture = {"classes": classes, **architecture, "widths": list(widths), "depths": list(depths)}
        layers: list[nn.Module] = [
            _convolution(3, stem, 3, 2),
            nn.ReLU(),
            _convolution(stem, widths[0], 3, 2),
            nn.ReLU(),
        ]
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for place in range(depth):
                layers.append(Block(channels, width, 2 if stage and not place else 1))
                channels = width
        layers += [_convolution(channels, features, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.network = nn.Sequential(*layers, nn.Linear(features, classes)).to(memory_format=torch.channels_last)
        self.classes, self.size, self.label_smoothing = classes, size, label_smoothing
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps, self.decay_steps, self.seed = warmup_steps, decay_steps, seed
        self.coarse_steps = coarse_steps
        self.first_stage, self.reconstructed = first_stage, reconstructed if first_stage else 0.0
        self.concepts: dict[str, str] = {}
        self.data_configs: dict[str, Any] = {}
        self._stage: list[nn.Module] = []  # a list, so that its weights are no part of the judge's
        self._reconstructions: dict[str, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits ``[B, classes]`` of images ``[B, 3, H, W]`` in [-1, 1]."""
        return self.logits(self.scaled(images))

    def scaled(self, images: Tensor) -> Tensor:
        """Returns images ``[B, 3, H, W]`` with the sides that the network sees."""
        sides = (self.size, self.size)
        return images if images.shape[2:] == sides else F.interpolate(images, sides, mode="bilinear", antialias=True)

    def now(self, images: Tensor) -> Tensor:
        """Returns images ``[B, 3, H, W]`` with the sides that the network sees at this step of training."""
        images = self.scaled(images)
        return F.avg_pool2d(images, 2) if self.global_step < self.coarse_steps else images

    def logits(self, images: Tensor) -> Tensor:
        """Returns the logits ``[B, classes]`` of images ``[B, 3, H, W]`` as they are."""
        return self.network(images.contiguous(memory_format=torch.channels_last))

    def setup(self, stage: str) -> None:
        """Reads the concepts from the training and validation sets, whose pictures must have colours.

        Raises:
            ValueError: the pictures are grey, or there are more or fewer concepts than classes.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or data is None:
            return
        check_training_data(self.trainer, "image", 3, "train another network, as a judge sees colours")
        self.concepts = concepts_of(data.datasets.values())
        if len(self.concepts) != self.classes:
            raise ValueError(
                f"classes: got {self.classes}, expected {len(self.concepts)}, the concepts of the data set"
            )

    def targets(self, concepts: Sequence[str]) -> Tensor:
        """Returns the class of each concept, ``[B] int64``.

        Raises:
            ValueError: a concept is not among those of the judge.
        """
        places = {concept: place for place, concept in enumerate(self.concepts)}
        if unknown := [concept for concept in concepts if concept not in places]:
            raise ValueError(
                f"got the concept '{unknown[0]}', expected one of the judge's {len(places)}; train it anew"
            )
        return torch.tensor([places[concept] for concept in concepts], device=self.device)

    def with_reconstructions(self, images: Tensor, ids: Sequence[str], generator: torch.Generator) -> Tensor:
        """Returns images, some of them replaced by reconstructions, each of which is made only once.

        Args:
            images: ``[B, 3, H, W]`` in [-1, 1].
            ids: of the pictures; they decide which ones are ever reconstructed.
            generator: decides which of these are replaced now.
        """
        now = torch.rand(len(ids), generator=generator) < 0.5
        chosen = [i for i, key in enumerate(ids) if now[i] and share_of(key) < self.reconstructed]
        if new := [i for i in chosen if ids[i] not in self._reconstructions]:
            if not self._stage:
                self._stage = [load_first_stage(str(self.first_stage)).model.to(images.device)]
            with torch.no_grad():
                made = [reconstruct(self._stage[0], images[new[i : i + _RECONSTRUCTED_AT_ONCE]])
                        for i in range(0, len(new), _RECONSTRUCTED_AT_ONCE)]  # fmt: skip
            self._reconstructions.update(zip([ids[i] for i in new], torch.cat(made).half().cpu(), strict=True))
        images = images.clone()
        for i in chosen:
            images[i] = self._reconstructions[ids[i]].to(images)
        return images

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's signature)
        """Returns the cross-entropy of one batch."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.global_step)
        images = self.with_reconstructions(gathered(batch["image"]), gathered_items(batch["id"]), generator)
        logits = self.logits(own(augment(self.now(images), generator))).float()
        target = self.targets(batch["concept"])
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        for name, value in means({"loss": loss, "top1": (logits.argmax(1) == target).float().mean()}).items():
            self.log(f"train/{name}", value, prog_bar=name == "loss")
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        """Logs how often the concept of a held-out picture is the first, or among the first five."""
        logits, target = self.logits(self.now(batch["image"])).float(), self.targets(batch["concept"])
        place = rank(logits, target[:, None])
        figures = {"loss": F.cross_entropy(logits, target), "top1": (place < 1).float().mean()}
        figures["top5"] = (place < 5).float().mean()
        for name, value in figures.items():
            options: dict[str, Any] = {"on_epoch": True, "sync_dist": True, "batch_size": counted(len(target))}
            self.log(f"val/{name}", value, prog_bar=name != "loss", **options)

    def configure_optimizers(self) -> Any:
        """Returns AdamW, its rate constant between warm-up and final decay."""
        groups = [
            {"params": [p for p in self.network.parameters() if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in self.network.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / self.warmup_steps)
            return warm * min(1.0, max(0.0, total - step) / max(1, self.decay_steps))

        schedule = StepSchedule(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the concepts."""
        checkpoint["concepts"] = self.concepts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the concepts back.

        Raises:
            ValueError: the data set has other concepts than the checkpoint.
        """
        stored = checkpoint.get("concepts", {})
        if self.concepts and list(self.concepts) != list(stored):
            raise ValueError("the data set has other concepts than the checkpoint; train a new judge")
        self.concepts = dict(stored)

    def on_fit_end(self) -> None:
        """Writes the judge beside the checkpoints, with the config of the data that it was trained on."""
        folder = self.trainer.log_dir  # which all processes must ask for
        if self.trainer.is_global_zero and folder:
            data: Any = getattr(self.trainer, "datamodule")  # noqa: B009 (Lightning does not declare it)
            self.export(Path(folder) / "judge", data.dataset_configs)

    def export(self, folder: str | Path, data: Mapping[str, Any]) -> None:
        """Writes ``model.safetensors`` (float16, with the concepts as metadata) and ``config.yaml`` into ``folder``.

        Args:
            folder: is made.
            data: the configs of the data sets by name, such as ``validation``.
        """
        folder = Path(folder)
        write_weights(folder / WEIGHTS, self.state_dict(), dtype=torch.float16, metadata={"concepts": self.concepts})
        write_config(folder / CONFIG, {"model": {"target": TARGET, "params": self.architecture}, "data": dict(data)})
        LOG.info("wrote the judge to %s", folder)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images ``[B, 3, H, W]`` in [-1, 1], each changed a little at random."""
    images = move(images, generator, shift=0.08, scale=(0.8, 1.1), degrees=10)
    images = recolour(images, generator, brightness=0.15, contrast=0.25, saturation=0.3)
    return add_noise(soften(images, generator, share=0.4), generator, largest=0.06)


def concepts_of(datasets: Any) -> dict[str, str]:
    """Returns the name of each concept in some data sets, sorted by concept."""
    items = [images.metadata(i) for images in datasets for i in range(len(images))]
    return dict(sorted({item["concept"]: item["caption"] for item in items}.items()))


def rank(logits: Tensor, right: Tensor) -> Tensor:
    """Returns how many classes stand before the best right one, ``[B] int64``.

    Args:
        logits: ``[B, C]``.
        right: ``[B, R] int64``, the classes that count as right; more than one if several concepts have one name.
    """
    best = logits.gather(1, right).amax(1, keepdim=True)
    return (logits > best).sum(1)


def share_of(key: str) -> float:
    """Returns a number from 0 to 1 that depends on a text alone, spread evenly over texts."""
    return int.from_bytes(hashlib.sha256(b"share " + key.encode()).digest()[:8], "big") / 2**64


def load_judge(folder: str | Path) -> Judge:
    """Returns a judge with its concepts, in evaluation mode and on the GPU if there is one.

    Args:
        folder: what :meth:`Judge.export` wrote, or the run folder that it lies in.

    Raises:
        FileNotFoundError: there is no judge.
        ValueError: the folder holds another kind of model, or names no concepts.
    """
    file = judge_file(folder)
    if not file.is_file():
        raise FileNotFoundError(
            f"no judge at {folder}; train one with main.py --base configs/judge/emoji.yaml -t and give its RUN/judge"
        )
    config = read_config([file.parent / CONFIG])
    model = config.get("model") or {}
    concepts = read_metadata(file).get("concepts")
    if model.get("target") != TARGET or concepts is None:
        raise ValueError(f"{folder} holds a {model.get('target', 'nothing')}, expected {TARGET} with its concepts")
    judge: Judge = instantiate_from_config(model)
    load_weights(judge, read_weights(file), source=file)
    judge.concepts, judge.data_configs = json.loads(concepts), dict(config.get("data") or {})
    if len(judge.concepts) != judge.classes:
        raise ValueError(f"{file} names {len(judge.concepts)} concepts, expected {judge.classes}, one for each class")
    return judge.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def judge_file(folder: str | Path) -> Path:
    """Returns the path of a judge's weights, whether it exists or not; ``folder`` is as for :func:`load_judge`."""
    folder = located(folder)
    inside = folder / "judge" / WEIGHTS
    return inside if inside.is_file() else folder / WEIGHTS
