"""The shipped autoregressive model: it loads, and what a picture is like helps it to tell that picture's codes."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.data import ParquetImages
from ldm.util import evenly
from rdm.loading import KINDS, config_beside, load_model
from rdm.models.autoregression.transformer import RetrievalAugmentedTransformer
from rdm.models.neighbours import TOKENS_KEY
from rdm.retrieval.config import load_embedder

ROOT = Path(__file__).parents[3]
CLIP = ROOT / "models" / "clip" / "emoji"


def test_own_embeddings_tell_more_than_others_of_held_out_pictures() -> None:
    path = ROOT / KINDS["rarm"][1] / "model.safetensors"
    model = load_model(config_beside(path)["model"], path)
    assert isinstance(model, RetrievalAugmentedTransformer)
    images = ParquetImages(str(ROOT / "data" / "emoji"), 64, split="val")
    pictures = torch.stack([images[n]["image"] for n in evenly(len(images), 32)])
    embedder = load_embedder(
        {"target": "ldm.modules.encoders.modules.OpenClipEmbedder", "params": {"model": str(CLIP)}}
    )
    with torch.inference_mode():
        codes = model.to_codes(pictures)
        k, grid = model.conditioner.k, model.conditioner.grid
        of_each = {"neighbours": embedder.images(pictures), TOKENS_KEY: embedder.tokens(pictures, grid)}
        own = model.context({key: value[:, None].expand(-1, k, *value.shape[1:]) for key, value in of_each.items()})
        contexts = {"own": own, "null": model.null_context(own), "others": own.roll(1, dims=0)}
        bits = {
            name: float(model.loss(codes, context)) / torch.tensor(2.0).log().item()
            for name, context in contexts.items()
        }
    assert 4.0 < bits["own"] < bits["null"] - 0.05 < bits["others"] - 0.15, bits
