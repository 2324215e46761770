"""Exports a retrieval-augmented model as a whole pipeline of diffusers, with its retriever."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.checkpoint import write_weights
from ldm.convert.diffusers import export_diffusers
from ldm.files import atomic_path, write_json
from ldm.modules.encoders.clip import OpenClipEmbedder
from ldm.pictures import with_channels
from rdm.loading import Loaded
from rdm.retrieval.database.outlines import Outlines
from rdm.retrieval.database.pictures import pictures

LOG = logging.getLogger(__name__)
FILES = Path(__file__).parent / "pipeline_files"  # the code of the exported folder, which imports nothing of ours
PIPELINE, RETRIEVER, REFERENCES = "pipeline.py", "retriever", "reference_encoder"
KNOWN = ("image_id", "caption", "class_id", "uri", "licence", "attribution")
_BATCH = 64


def export_pipeline(config: Mapping[str, Any], state: Mapping[str, Tensor], loaded: Loaded, output: str | Path) -> Path:
    """Writes a folder for ``DiffusionPipeline.from_pretrained``, which samples texts, and returns the folder.

    Beside what :func:`ldm.convert.diffusers.export_diffusers` writes, it holds the code of the pipeline and the
    retriever: CLIP, and of each row its vector and what the model needs of its picture.

    Args:
        config: the config of the run.
        state: its weights by name, without a running average.
        loaded: the same model with its database. Only rows that neighbours may come from are exported.
        output: the folder.

    Raises:
        ValueError: the model is plain or autoregressive, or diffusers has no counterpart for an option.
        FileNotFoundError: the model needs the pictures of the database, whose source has moved.
    """
    output, model, retriever = Path(output), loaded.diffusion, loaded.retriever
    if loaded.is_plain:
        raise ValueError(f"{loaded.path} has no database, so there is no retriever to export; leave out --whole")
    conditioner, embedder = model.conditioner, retriever.embedder
    if conditioner.include_query or not model.use_neighbours or not isinstance(embedder, OpenClipEmbedder):
        raise ValueError(
            f"got include_query={conditioner.include_query}, use_neighbours={model.use_neighbours}, embedder "
            f"{type(embedder).__name__}; expected false, true and OpenClipEmbedder; export without --whole"
        )
    export_diffusers(config, state, output, further=True)
    components = {"unet": "UNet2DConditionModel", "scheduler": "DDIMScheduler"}
    components |= {"vae": "AutoencoderKL"} if (output / "vae").is_dir() else {"vqvae": "VQModel"}
    index: dict[str, Any] = {"_class_name": ["pipeline", "RetrievalAugmentedPipeline"], "_diffusers_version": "0.35.0"}
    index |= {name: ["diffusers", kind] for name, kind in components.items()}
    index |= {"retriever": [RETRIEVER, "NeighbourRetriever"], "k": conditioner.k}
    index["context_length"] = conditioner.scale if conditioner.normalize else None
    if model.references is not None:
        index |= {REFERENCES: [REFERENCES, "ReferenceEncoder"], "reference_agreement": model.references.agreement}
        width = config["model"]["params"]["unet_config"]["params"].get("reference_width", 32)
        sizes = {"channels": model.latent_channels, "width": width}
        write_json(output / REFERENCES / "config.json", {"_class_name": "ReferenceEncoder", **sizes})
        _copy_code(f"{REFERENCES}.py", output / REFERENCES)
    _write_rows(loaded, output / RETRIEVER)
    embedder.save(output / RETRIEVER / "clip")
    _copy_code(PIPELINE, output)
    write_json(output / "model_index.json", index)
    return output


def _copy_code(name: str, folder: Path) -> None:
    with atomic_path(folder / name) as temporary:
        shutil.copyfile(FILES / name, temporary)


def _write_rows(loaded: Loaded, folder: Path) -> None:
    retriever, model = loaded.retriever, loaded.diffusion
    database, outlines = retriever.database, retriever.outlines
    rows = database.living_rows() if retriever.rows is None else retriever.rows[database.is_alive(retriever.rows)]
    arrays = {"embeddings": torch.from_numpy(database.embeddings(rows).astype(np.float16))}
    hides = model.references is not None and model.references.agreement is not None
    compared = Outlines(database, 1.0) if outlines is None and hides else outlines
    if compared is not None:
        listed = [compared[row].astype(np.float16) for row in tqdm(rows.tolist(), desc="outlines", unit="row")]
        arrays["outlines"] = torch.from_numpy(np.stack(listed))
    if model.references is not None:
        arrays["latents"] = torch.cat(
            [
                _latents(loaded, rows[start : start + _BATCH])
                for start in tqdm(range(0, len(rows), _BATCH), desc="latents", unit="batch")
            ]
        )
    write_weights(folder / "rows.safetensors", arrays)
    with atomic_path(folder / "rows.jsonl") as temporary:
        temporary.write_text("".join(_lines(rows, database.metadata(rows))), encoding="utf-8")
    chosen = {"same_outline": None} if outlines is None else {"same_outline": outlines.least, "agree": outlines.agree}
    write_json(folder / "config.json", {"_class_name": "NeighbourRetriever", **chosen})
    _copy_code(f"{RETRIEVER}.py", folder)
    LOG.info("wrote %d of %d rows of %s", len(rows), len(database), database.path)


def _lines(rows: np.ndarray, metadata: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a line of JSON for each row, without what is unknown."""
    known = [{name: entry[name] for name in KNOWN if entry.get(name)} for entry in metadata]
    return [json.dumps({"row": row, **each}) + "\n" for row, each in zip(rows.tolist(), known, strict=True)]


@torch.no_grad()
def _latents(loaded: Loaded, rows: np.ndarray) -> Tensor:
    """Returns the latents of rows at the size of the training images, ``[n, C, h, w] float32``."""
    model = loaded.diffusion
    images = with_channels(pictures(loaded.retriever.database, rows, loaded.data.image_size), model.image_channels)
    return model.to_latent(images.to(model.device)).float().cpu()
