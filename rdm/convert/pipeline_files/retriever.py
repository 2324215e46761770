"""The retriever of an exported folder: the vectors of database rows, and the CLIP model that embeds texts.

config.json            how neighbours are chosen
clip/                  the CLIP model in open_clip's local form
rows.safetensors       embeddings [N, D] float16, and as the model needs them outlines [N, 1024] float16 and latents
                       [N, C, h, w] float32
rows.jsonl             what is known of each row, one object in a line
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.numpy import load_file
from torch import Tensor


class NeighbourRetriever(ModelMixin, ConfigMixin):
    """Finds the rows whose embeddings are nearest to a text by cosine similarity.

    The CLIP model is a module of the pipeline and follows its device; the rows stay in the memory of the machine.

    Args:
        same_outline: a row whose outline correlates at least this much with that of a nearer one is a copy of it, and
            is left out; None keeps copies.
        agree: the neighbours after the first are those whose outlines agree most with the first, among this many
            nearest rows that are no copies; 1 takes the nearest ones.
    """

    config: Any
    clip: Any
    tokenizer: Any
    unit: Tensor

    @register_to_config
    def __init__(self, same_outline: float | None = None, agree: int = 1) -> None:  # noqa: ARG002 (for the config)
        super().__init__()
        self.folder = Path()
        self.arrays: dict[str, np.ndarray] = {}
        self.lines: list[str] = []

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> NeighbourRetriever:
        """Returns the retriever in a folder; ``options`` of diffusers other than ``torch_dtype`` have no effect."""
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        retriever = cls(config["same_outline"], config.get("agree", 1))
        retriever.folder = folder
        retriever.clip = open_clip.create_model(f"local-dir:{folder / 'clip'}")
        retriever.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder / 'clip'}")
        retriever.arrays = load_file(folder / "rows.safetensors")
        retriever.lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        vectors = retriever.arrays["embeddings"].astype(np.float32)
        retriever.unit = torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        return retriever.eval().requires_grad_(False).to(options.get("torch_dtype") or torch.float32)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Copies the files of the retriever into a folder; ``options`` of diffusers have no effect."""
        del options
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)

    def __len__(self) -> int:
        """Returns the number of rows, N."""
        return len(self.lines)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Returns the vectors ``[B, D] float32`` of texts."""
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"got the prompts {texts!r}, expected texts that are not empty")
        return self.clip.encode_text(self.tokenizer(list(texts)).to(self.device)).float().cpu()

    def nearest(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k rows nearest to each query ``[B, D]``, nearest first, and their similarity, both ``[B, K]``.

        Raises:
            ValueError: there are fewer than k rows that are no copies.
        """
        similar = torch.nn.functional.normalize(queries, dim=1) @ self.unit.T
        rows, scores = [], []
        for line in similar.numpy():
            order = np.lexsort((np.arange(len(line)), -line))
            kept = self._agreeing(self._without_copies(order, max(k, self.config.agree)), k)
            if len(kept) < k:
                raise ValueError(f"got {k} neighbours, expected at most {len(kept)}, the rows that are no copies")
            rows.append(kept)
            scores.append(line[kept])
        return np.stack(rows), np.stack(scores)

    def _without_copies(self, order: np.ndarray, k: int) -> np.ndarray:
        """Returns the first k rows of an order that are copies of no earlier one, or fewer if there are no k."""
        if self.config.same_outline is None:
            return order[:k]
        kept: list[int] = []
        seen = np.empty((0, self.arrays["outlines"].shape[1]), np.float32)
        for row in order.tolist():
            own = self.arrays["outlines"][row].astype(np.float32)
            if not len(seen) or float((seen @ own).max()) < self.config.same_outline:
                kept.append(row)
                seen = np.concatenate([seen, own[None]])
            if len(kept) == k:
                break
        return np.array(kept)

    def _agreeing(self, kept: np.ndarray, k: int) -> np.ndarray:
        """Returns the first of some rows and the k - 1 others that agree most with it, in their order."""
        if self.config.agree == 1 or self.config.same_outline is None or len(kept) <= k:
            return kept[:k]
        outlines = self.arrays["outlines"][kept].astype(np.float32)
        best = np.argsort(-(outlines[1:] @ outlines[0]), kind="stable")[: k - 1]
        return kept[[0, *(1 + np.sort(best))]]

    def checked(self, rows: Any) -> np.ndarray:
        """Returns the places of given rows, ``[B, K] int64``.

        Raises:
            ValueError: they are not lists of whole numbers of the same length, or one is out of range.
        """
        lengths = {len(line) for line in rows}
        found = np.asarray(rows) if len(lengths) == 1 else np.empty(0)
        if found.ndim != 2 or not found.size or not np.issubdtype(found.dtype, np.integer):
            raise ValueError(f"got rows={rows!r}, expected a list of places for each image, all of the same length")
        if found.min() < 0 or found.max() >= len(self):
            raise ValueError(f"got rows from {found.min()} to {found.max()}, expected 0 to {len(self) - 1}")
        return found.astype(np.int64)

    def embeddings(self, rows: np.ndarray) -> np.ndarray:
        """Returns the raw vectors of rows of any shape, ``[..., D] float32``."""
        return self.arrays["embeddings"][rows].astype(np.float32)

    def latents(self, rows: np.ndarray, least: float | None = None) -> np.ndarray:
        """Returns the scaled latents of rows ``[B, K]``, ``[B, K, C, h, w] float32``.

        They are zeros where the outline correlates less than ``least`` with that of the first row of its line.
        """
        latents = self.arrays["latents"][rows]
        if least is not None:
            outlines = self.arrays["outlines"][rows].astype(np.float32)
            agree = np.einsum("bkd,bd->bk", outlines, outlines[:, 0]) >= least
            agree[:, 0] = True
            latents = latents * agree[:, :, None, None, None]
        return latents

    def known(self, row: int) -> dict[str, Any]:
        """Returns what is known of a row: its number in the database, id, caption, licence and so on."""
        return json.loads(self.lines[row])
