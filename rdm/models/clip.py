"""Trains a small CLIP with open_clip, for users who have pictures and names but no pretrained weights.

A text tells some facts about a picture: its name, keywords, category, style and dominant colours. A picture and a text
belong together when all that the text tells holds for the picture. So a batch has several positives a row, and the loss
is the contrastive loss (Radford et al. 2021, section 2.3) with the target spread evenly over them (supervised
contrastive learning, Khosla et al. 2020, eq. 2).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.checkpoint import read_weights, write_weights
from ldm.data.colours import COLOURS, dominant_colours
from ldm.data.decode import sides
from ldm.files import write_json
from ldm.lr_scheduler import StepSchedule
from ldm.models.training_data import check_training_data
from ldm.parallel import gathered, gathered_items, own
from rdm.models.captions import WORDS, bare_name, facts_of, positives, text_about

LOG = logging.getLogger(__name__)
# What a residual branch ends with, in open_clip's transformers and ResNets.
BRANCH_ENDS = tuple(
    f"{layer}.{kind}" for layer in ("attn.out_proj", "mlp.c_proj", "bn3") for kind in ("weight", "bias")
)
DETAILS = ("keywords", "category", "subcategory", "style")


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


def recolour(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Returns images with their red, green and blue exchanged, each in one of the five ways; grey remains grey.

    Args:
        images: ``[B, 3, H, W]``.
        rng: chooses the ways.
    """
    ways = torch.tensor([order for order in permutations(range(3)) if order != (0, 1, 2)])
    orders = ways[rng.integers(len(ways), size=len(images))].to(images.device)
    return images.gather(1, orders[:, :, None, None].expand_as(images))


def grow(clip: open_clip.CLIP, start: Path) -> None:
    """Gives a CLIP the weights of a smaller one of the same widths, so that both compute the same.

    Blocks that the smaller one lacks become identities: the last layer of each of their branches is zero.

    Args:
        clip: is changed.
        start: folder of the smaller one, in open_clip's local-directory form.

    Raises:
        ValueError: the smaller one has weights of another shape, or weights that this one lacks.
    """
    weights = {key: value.float() for key, value in read_weights(start / "open_clip_model.safetensors").items()}
    own = clip.state_dict()
    if wrong := [key for key, value in weights.items() if key not in own or own[key].shape != value.shape]:
        raise ValueError(
            f"start={start}: {len(wrong)} of its weights do not fit, such as {wrong[0]}; expected a CLIP of the widths "
            "in model_cfg, with the same number of blocks or fewer"
        )
    further = {key: torch.zeros_like(own[key]) for key in set(own) - set(weights) if key.endswith(BRANCH_ENDS)}
    clip.load_state_dict(weights | further, strict=False)


class SmallCLIP(pl.LightningModule):
    """An open_clip model trained on pictures with names, keywords, categories and styles.

    Args:
        model_cfg: open_clip's model configuration (``embed_dim``, ``vision_cfg``, ``text_cfg``).
        preprocess_cfg: ``mean`` and ``std`` of the pictures in [0, 1].
        learning_rate: rate of AdamW after a linear warm-up.
        weight_decay: for matrices; vectors and embeddings have none.
        warmup_steps: length of the warm-up, in steps.
        decay_steps: how many steps before the last one the rate begins to fall, linearly to zero. Until then it is
            constant, so a run that was stopped before can be prolonged.
        recoloured: share of a batch that is replaced by copies of its other pictures in other colours, so that the
            same thing occurs in several colours.
        seed: of texts and augmentation; step n draws from (seed, n), so a resumed run repeats nothing.
        start: folder of a CLIP in open_clip's local-directory form whose weights the training starts from. It may have
            fewer blocks than this one; see :func:`grow`.
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
        decay_steps: int = 1000,
        recoloured: float = 0.125,
        seed: int = 0,
        start: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= recoloured <= 0.5:
            raise ValueError(f"recoloured: got {recoloured}, expected a share from 0 to 0.5")
        self.config = {"model_cfg": json.loads(json.dumps(model_cfg)), "preprocess_cfg": dict(preprocess_cfg)}
        self.clip = open_clip.CLIP(**self.config["model_cfg"])
        if start is not None:
            grow(self.clip, Path(start))
        self.clip.visual.to(memory_format=torch.channels_last)
        text = self.config["model_cfg"]["text_cfg"]
        self.tokenizer = open_clip.SimpleTokenizer(
            context_length=text["context_length"], **text.get("tokenizer_kwargs", {})
        )
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.decay_steps, self.recoloured, self.seed = decay_steps, recoloured, seed
        self.register_buffer("mean", torch.tensor(preprocess_cfg["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess_cfg["std"]).view(3, 1, 1), persistent=False)
        self._colours: dict[str, tuple[str, ...]] = {}
        self._names: list[str] = []
        self._outputs: list[tuple[Tensor, list[dict[str, Any]]]] = []

    def setup(self, stage: str) -> None:  # noqa: ARG002 (Lightning's signature)
        """Checks before training that the pictures have the colours and the size that the tower reads.

        Raises:
            ValueError: they have not.
        """
        given = self.config["model_cfg"]["vision_cfg"]["image_size"]
        remedy = "train another network, as a CLIP sees colours"
        check_training_data(self.trainer, "image", 3, remedy, size=sides(given))

    def neutral_embedding(self, texts: Sequence[str]) -> Tensor:
        """Returns the token embedding ``[V, W]`` with the article "a" in place of what training taught nothing about.

        That is every token that no text holds, and sentence punctuation. Layer norms bring an untaught embedding, even
        zero, to full size, so that one unknown word drowned the known ones.
        """
        weight = self.clip.token_embedding.weight.detach().clone()
        taught = {token for text in [*texts, WORDS] for token in self.tokenizer.encode(text)}
        neutral = torch.ones(len(weight), dtype=torch.bool)
        neutral[[0, self.tokenizer.sot_token_id, self.tokenizer.eot_token_id, *taught]] = False
        neutral[[self.tokenizer.encode(mark)[0] for mark in ".,!"]] = True
        weight[neutral.to(weight.device)] = weight[self.tokenizer.encode("a")[0]].clone()
        return weight

    def training_texts(self) -> list[str]:
        """Returns all words the data set holds, a text for each picture."""
        items = [item for loader in self._loaders() for item in all_metadata(loader.dataset)]
        texts = [" ".join(item.get(key, "") for key in ("caption", *DETAILS)) for item in items]
        return texts + [text.replace("-", " ") for text in texts]

    def _loaders(self) -> list[Any]:
        module: Any = getattr(self.trainer, "datamodule")  # noqa: B009 (Lightning does not declare it)
        return [loader for loader in (module.train_dataloader(), module.val_dataloader()) if loader != []]

    def colours_of(self, images: Tensor, ids: Sequence[str]) -> list[tuple[str, ...]]:
        """Returns the dominant colours of images ``[B, 3, H, W]``; an image whose id was seen is not measured again."""
        new = [i for i, key in enumerate(ids) if key not in self._colours]
        if new:
            self._colours.update(zip([ids[i] for i in new], dominant_colours(images[new].cpu()), strict=True))
        return [self._colours[key] for key in ids]

    def encode_image(self, images: Tensor) -> Tensor:
        """Returns unit vectors ``[B, D]`` of images ``[B, 3, H, W]`` in [-1, 1]."""
        pixels = ((images / 2 + 0.5 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.clip.encode_image(pixels).float(), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Returns unit vectors ``[B, D]`` of texts."""
        return F.normalize(self.clip.encode_text(self.tokenizer(list(texts)).to(self.device)).float(), dim=-1)

    def with_recoloured(
        self, batch: dict[str, Any], rng: np.random.Generator
    ) -> tuple[Tensor, list[dict[str, str]], list[tuple[str, ...]]]:
        """Returns images, metadata and dominant colours of a batch, its last part replaced by recoloured copies.

        Of several processes, each gets those of the whole batch.
        """
        images, items = gathered(batch["image"]), gathered_items(items_of(batch))
        colours = gathered_items(self.colours_of(batch["image"], batch["id"]))
        if copies := int(self.recoloured * len(items)):
            others = recolour(images[:copies], rng)
            images = torch.cat([images[:-copies], others])
            items, colours = items[:-copies] + items[:copies], colours[:-copies] + dominant_colours(others.cpu())
        return images, items, colours

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's signature)
        """Returns the contrastive loss of one batch, whose vectors are gathered from all processes."""
        step = self.global_step
        rng = np.random.default_rng((self.seed, step))
        images, items, colours = self.with_recoloured(batch, rng)
        facts = [facts_of(item, named) for item, named in zip(items, colours, strict=True)]
        texts, asked = zip(*(text_about(i, c, rng) for i, c in zip(items, colours, strict=True)), strict=True)
        images = random_affine(images, torch.Generator().manual_seed(1_000_003 * self.seed + step))
        image_vectors = gathered(self.encode_image(own(images)))
        text_vectors = gathered(self.encode_text(own(texts)))
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
        colours = self.colours_of(batch["image"], batch["id"])
        items = [item | {"colours": named} for item, named in zip(items_of(batch), colours, strict=True)]
        self._outputs.append((self.encode_image(batch["image"]).cpu(), items))

    def on_validation_epoch_end(self) -> None:
        """Logs how well names, styles and colours are told from the held-out pictures, and pictures from names."""
        items = gathered_items([item for output in self._outputs for item in output[1]])
        images = torch.stack(gathered_items(list(torch.cat([output[0] for output in self._outputs])))).to(self.device)
        self._outputs.clear()
        if not self._names:
            styles = {item["style"] for item in items}
            known = [item for loader in self._loaders() for item in all_metadata(loader.dataset)]
            self._names = sorted({item["caption"] for item in known if item.get("style", "") in styles})
        for key, value in retrieval_figures(self.encode_text, images, items, self._names).items():
            self.log(f"val/{key}", value, prog_bar=key == "recall@5")

    def configure_optimizers(self) -> Any:
        """Returns AdamW, its rate constant between warm-up and final decay."""
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
            return warm * min(1.0, max(0.0, total - step) / max(1, self.decay_steps))

        schedule = StepSchedule(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_end(self) -> None:
        """Writes the model beside the checkpoints in open_clip's local-directory form."""
        folder = self.trainer.log_dir  # which all processes must ask for
        if self.trainer.is_global_zero and folder:
            self.export(Path(folder) / "open_clip", self.training_texts())

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


def items_of(batch: dict[str, Any]) -> list[dict[str, str]]:
    """Returns the metadata of each picture of a batch; what the data set does not know is empty."""
    columns = {key: batch.get(key, [""] * len(batch["caption"])) for key in ("caption", *DETAILS)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def all_metadata(images: Any) -> list[dict[str, str]]:
    """Returns the items of a data set without their pictures."""
    return [images.metadata(i) for i in range(len(images))]


def places_of(captions: Sequence[str], names: Sequence[str]) -> Tensor:
    """Returns where each caption stands among the names, ``[N] int64``."""
    index = {name: i for i, name in enumerate(names)}
    return torch.tensor([index[caption] for caption in captions])


def ranks(similarity: Tensor, truth: Tensor) -> Tensor:
    """Returns how many columns of each row are above the true one.

    Args:
        similarity: ``[N, M]``.
        truth: ``[N] int64``, the true column of each row.
    """
    return (similarity > similarity.gather(1, truth[:, None])).sum(1)


@torch.no_grad()
def retrieval_figures(
    encode_text: Callable[[Sequence[str]], Tensor],
    images: Tensor,
    items: Sequence[dict[str, Any]],
    names: Sequence[str],
) -> dict[str, float]:
    """Returns recall of names from pictures, of pictures from names, accuracy of style and of colour, as fractions.

    Args:
        encode_text: makes unit vectors ``[N, D]`` of texts.
        images: unit vectors ``[N, D]`` of held-out pictures.
        items: ``caption``, ``style`` and ``colours`` (the dominant ones) of each picture.
        names: all names to choose from.
    """

    def encode(texts: Sequence[str]) -> Tensor:
        return torch.cat([encode_text(texts[i : i + 512]) for i in range(0, len(texts), 512)])

    def choose(words: Sequence[str], things: Sequence[str]) -> list[str]:
        """Returns the word that goes best with each picture, of texts "word thing"."""
        vectors = encode([f"{word.replace('-', ' ')} {thing}" for word in words for thing in things])
        scores = (vectors.view(len(words), len(images), -1) * images[None]).sum(-1)
        return [words[i] for i in scores.argmax(0).tolist()]

    captions = [item["caption"] for item in items]
    similarity = images @ encode(names).T
    truth = places_of(captions, names).to(images.device)
    rank = ranks(similarity, truth)
    asked = truth.unique()
    by_text = similarity.T[asked]
    relevant = truth[None] == asked[:, None]
    best = by_text.masked_fill(~relevant, -2).amax(1, keepdim=True)
    text_rank = (by_text > best).sum(1)
    styles = choose(sorted({item["style"] for item in items}), captions)
    colours = choose(COLOURS, [bare_name(caption) for caption in captions])
    return {
        "recall@1": (rank < 1).float().mean().item(),
        "recall@5": (rank < 5).float().mean().item(),
        "text_recall@1": (text_rank < 1).float().mean().item(),
        "text_recall@5": (text_rank < 5).float().mean().item(),
        "style_accuracy": float(np.mean([a == item["style"] for a, item in zip(styles, items, strict=True)])),
        "colour_accuracy": float(np.mean([a in item["colours"] for a, item in zip(colours, items, strict=True)])),
    }
