"""Trains a small CLIP with open_clip, for users who have pictures and names but no pretrained weights.

Every picture has four facts that a text can ask for: its concept, subcategory, category and style. A text names some of
them; a picture and a text belong together when all facts that the text names hold for the picture. So a batch has
several positives a row, and the loss is the contrastive loss (Radford et al. 2021, section 2.3) with the target spread
evenly over them (supervised contrastive learning, Khosla et al. 2020, eq. 2).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.checkpoint import write_weights
from ldm.files import write_json
from ldm.lr_scheduler import StepSchedule

LOG = logging.getLogger(__name__)
FACTS = ("concept", "subcategory", "category", "style")
ANY = -1


def caption_picture(item: dict[str, Any], rng: np.random.Generator) -> tuple[str, tuple[bool, ...]]:
    """Returns a text about a picture and which of its ``FACTS`` the text names.

    Args:
        item: of an image data set; has ``caption`` (its name), ``keywords``, ``category``, ``subcategory``, ``style``.
        rng: picks the kind of text.
    """
    kind = rng.choice(("name", "keywords", "both", "category", "subcategory"), p=(0.5, 0.14, 0.2, 0.06, 0.1))
    keywords = [word for word in item["keywords"].split(", ") if word]
    some = list(rng.permutation(keywords)[: rng.integers(1, 4)]) if keywords else [item["caption"]]
    text = {
        "name": item["caption"],
        "keywords": " ".join(some),
        "both": " ".join([item["caption"], *some]),
        "category": item["category"].replace("-", " "),
        "subcategory": item["subcategory"].replace("-", " "),
    }[kind]
    style = item["style"].replace("-", " ")
    names_style = bool(rng.random() < 0.4)
    if names_style:
        text = str(rng.choice((f"{text} in {style} style", f"{style} {text}", f"a {style} image of a {text}")))
    elif rng.random() < 0.5:
        text = str(rng.choice((f"a {text}", f"an image of a {text}", f"a picture of {text}")))
    named = (kind in ("name", "keywords", "both"), kind == "subcategory", kind == "category", names_style)
    return text, named


def positives(facts: Tensor, asked: Tensor) -> Tensor:
    """Returns which pictures satisfy which texts, ``[B, B']`` bool.

    Args:
        facts: ``[B, 4] int64``, the facts of each picture.
        asked: ``[B', 4] int64``, the facts each text names, ``-1`` where it names none.
    """
    return ((facts[:, None] == asked[None]) | (asked[None] == ANY)).all(-1)


def contrastive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Returns the symmetric contrastive loss with several positives a row.

    Args:
        logits: ``[B, B]`` scaled similarities, pictures by texts.
        positive: ``[B, B]`` bool, from :func:`positives`; every row and column holds at least one.
    """
    target = positive.to(logits.dtype)
    by_picture = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    by_text = F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
    return (by_picture + by_text) / 2


def random_affine(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images moved by up to a tenth, scaled by 0.83 to 1.25 and turned by up to 12 degrees.

    Args:
        images: ``[B, 3, H, W]`` in [-1, 1]; the border is continued.
        generator: source of the randomness.
    """
    n = len(images)
    draw = torch.rand(4, n, generator=generator).to(images) * 2 - 1
    scale, angle = 1.0 + 0.2 * draw[0], 0.21 * draw[1]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([cos, -sin, 0.2 * draw[2], sin, cos, 0.2 * draw[3]], dim=1).view(n, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class SmallCLIP(pl.LightningModule):
    """An open_clip model trained on pictures with names, keywords, categories and styles.

    Args:
        model_cfg: open_clip's model configuration (``embed_dim``, ``vision_cfg``, ``text_cfg``).
        preprocess_cfg: ``mean`` and ``std`` of the pictures in [0, 1].
        learning_rate: peak rate of AdamW, after a linear warm-up, then falling as a cosine.
        weight_decay: for matrices; vectors and embeddings have none.
        warmup_steps: length of the warm-up, in steps.
        seed: of texts and augmentation; step n draws from (seed, n), so a resumed run repeats nothing.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model_cfg: dict[str, Any],
        preprocess_cfg: dict[str, Any],
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        warmup_steps: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = {"model_cfg": json.loads(json.dumps(model_cfg)), "preprocess_cfg": dict(preprocess_cfg)}
        self.clip = open_clip.CLIP(**self.config["model_cfg"])
        self.clip.visual.to(memory_format=torch.channels_last)
        text = self.config["model_cfg"]["text_cfg"]
        self.tokenizer = open_clip.SimpleTokenizer(
            context_length=text["context_length"], **text.get("tokenizer_kwargs", {})
        )
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.seed = seed
        self.register_buffer("mean", torch.tensor(preprocess_cfg["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess_cfg["std"]).view(3, 1, 1), persistent=False)
        self._codes: dict[str, int] = {}
        self._outputs: list[tuple[Tensor, dict[str, list[str]]]] = []

    def neutral_embedding(self, texts: Sequence[str]) -> Tensor:
        """Returns the token embedding ``[V, W]`` with the article "a" in place of what training taught nothing about.

        That is every token that no text holds, and sentence punctuation. Layer norms bring an untaught embedding, even
        zero, to full size, so that one unknown word drowned the known ones.
        """
        weight = self.clip.token_embedding.weight.detach().clone()
        known = self.tokenizer([*texts, "a an image picture of in style"]).unique()
        neutral = torch.ones(len(weight), dtype=torch.bool)
        neutral[known] = False
        neutral[[self.tokenizer.encode(mark)[0] for mark in ".,!"]] = True
        weight[neutral.to(weight.device)] = weight[self.tokenizer.encode("a")[0]].clone()
        return weight

    def training_texts(self) -> list[str]:
        """Returns all words the data set holds, a text for each picture."""
        items = [item for loader in self._loaders() for item in all_metadata(loader.dataset)]
        return [" ".join(i[key] for key in ("caption", "keywords", *FACTS[1:])).replace("-", " ") for i in items]

    def _loaders(self) -> list[Any]:
        module: Any = getattr(self.trainer, "datamodule")  # noqa: B009 (Lightning does not declare it)
        return [module.train_dataloader(), module.val_dataloader()]

    def _code(self, text: str) -> int:
        return self._codes.setdefault(text, len(self._codes))

    def _facts(self, batch: dict[str, Any]) -> Tensor:
        return torch.tensor([[self._code(f"{f}:{value}") for value in batch[f]] for f in FACTS]).T

    def encode_image(self, images: Tensor) -> Tensor:
        """Returns unit vectors ``[B, D]`` of images ``[B, 3, H, W]`` in [-1, 1]."""
        pixels = ((images / 2 + 0.5 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.clip.encode_image(pixels).float(), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Returns unit vectors ``[B, D]`` of texts."""
        return F.normalize(self.clip.encode_text(self.tokenizer(list(texts)).to(self.device)).float(), dim=-1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's signature)
        """Returns the contrastive loss of one batch."""
        step = self.global_step
        rng = np.random.default_rng((self.seed, step))
        items = [{k: batch[k][i] for k in ("caption", "keywords", *FACTS)} for i in range(len(batch["caption"]))]
        texts, named = zip(*(caption_picture(item, rng) for item in items), strict=True)
        facts = self._facts(batch)
        asked = torch.where(torch.tensor(named), facts, ANY)
        images = random_affine(batch["image"], torch.Generator().manual_seed(1_000_003 * self.seed + step))
        image_vectors, text_vectors = self.encode_image(images), self.encode_text(texts)
        # Similarities of 100 x cosine need more digits than bfloat16 has.
        with torch.autocast(self.device.type, enabled=False):
            logits = self.clip.logit_scale.exp() * image_vectors @ text_vectors.T
        loss = contrastive_loss(logits, positives(facts, asked).to(logits.device))
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/logit_scale", self.clip.logit_scale.exp())
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes a step and keeps the temperature within CLIP's bound of 100."""
        super().optimizer_step(*args, **kwargs)
        self.clip.logit_scale.data.clamp_(0, np.log(100))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        """Collects the embeddings of held-out pictures."""
        self._outputs.append((self.encode_image(batch["image"]), {k: list(batch[k]) for k in ("caption", "style")}))

    def on_validation_epoch_end(self) -> None:
        """Logs recall and style accuracy on the held-out pictures."""
        images = torch.cat([output[0] for output in self._outputs])
        held_out = {key: [v for output in self._outputs for v in output[1][key]] for key in ("caption", "style")}
        self._outputs.clear()
        names = sorted({item["caption"] for loader in self._loaders() for item in all_metadata(loader.dataset)})
        for key, value in retrieval_figures(self, images, held_out["caption"], held_out["style"], names).items():
            self.log(f"val/{key}", value, prog_bar=key == "recall@5")

    def configure_optimizers(self) -> Any:
        """Returns AdamW with warm-up and cosine."""
        matrices = [p for n, p in self.clip.named_parameters() if p.ndim >= 2 and "embedding" not in n]
        others = [p for n, p in self.clip.named_parameters() if p.ndim < 2 or "embedding" in n]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98), eps=1e-6)
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / self.warmup_steps)
            return warm * 0.5 * (1 + float(np.cos(np.pi * min(1.0, step / total))))

        schedule = StepSchedule(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_end(self) -> None:
        """Writes the model beside the checkpoints in open_clip's local-directory form."""
        if self.trainer.is_global_zero and self.trainer.log_dir:
            self.export(Path(self.trainer.log_dir) / "open_clip", self.training_texts())

    def export(self, folder: str | Path, texts: Sequence[str]) -> None:
        """Writes ``open_clip_config.json`` and ``open_clip_model.safetensors`` (float16) into ``folder``.

        Args:
            folder: is made.
            texts: what the model was trained on; other words become neutral, see :meth:`neutral_embedding`.
        """
        folder = Path(folder)
        state = {**self.clip.state_dict(), "token_embedding.weight": self.neutral_embedding(texts)}
        write_weights(folder / "open_clip_model.safetensors", state, dtype=torch.float16)
        write_json(folder / "open_clip_config.json", self.config)
        LOG.info("wrote the CLIP model to %s", folder)


def all_metadata(images: Any) -> list[dict[str, str]]:
    """Returns the items of a data set without their pictures."""
    return [images.metadata(i) for i in range(len(images))]


@torch.no_grad()
def retrieval_figures(
    model: SmallCLIP, images: Tensor, captions: Sequence[str], styles: Sequence[str], names: Sequence[str]
) -> dict[str, float]:
    """Returns recall of names from pictures, of pictures from names, and style accuracy, as fractions.

    Args:
        model: encodes the texts.
        images: unit vectors ``[N, D]`` of held-out pictures.
        captions: the name of each picture.
        styles: the style of each picture.
        names: all names to choose from.
    """
    similarity = images @ torch.cat([model.encode_text(names[i : i + 512]) for i in range(0, len(names), 512)]).T
    index = {name: i for i, name in enumerate(names)}
    truth = torch.tensor([index[caption] for caption in captions], device=images.device)
    rank = (similarity > similarity.gather(1, truth[:, None])).sum(1)
    asked = truth.unique()
    by_text = similarity.T[asked]
    relevant = truth[None] == asked[:, None]
    best = by_text.masked_fill(~relevant, -2).amax(1, keepdim=True)
    text_rank = (by_text > best).sum(1)
    kinds = sorted(set(styles))
    of_style = model.encode_text([f"{kind.replace('-', ' ')} {name}" for kind in kinds for name in captions])
    scores = (of_style.view(len(kinds), len(images), -1) * images[None]).sum(-1).argmax(0)
    right = scores == torch.tensor([kinds.index(style) for style in styles], device=images.device)
    return {
        "recall@1": (rank < 1).float().mean().item(),
        "recall@5": (rank < 5).float().mean().item(),
        "text_recall@1": (text_rank < 1).float().mean().item(),
        "text_recall@5": (text_rank < 5).float().mean().item(),
        "style_accuracy": right.float().mean().item(),
    }
