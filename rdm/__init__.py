"""Retrieval-augmented diffusion: latent diffusion conditioned on nearest neighbours from a database of pictures.

``rdm.load()`` returns a pipeline, which makes images of prompts; the scripts use the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdm.sampling.pipeline import Pipeline


def load(
    checkpoint: str | None = None,
    database: str | None = None,
    only: Sequence[str] = (),
    config: str | None = None,
    same_outline: float | None = None,
    agree: int | None = None,
    *,
    generator: str | None = None,
    adapter: str | None = None,
    image_encoder: str | None = None,
) -> Pipeline:
    """Returns a pipeline ready to sample; torch is imported by this call, not with the package.

    Args:
        checkpoint: a file, a run folder, ``rdm`` or ``rarm``; the newest run or else the shipped model if not given.
        database: another database than the model's, made by the same embedder.
        only: ``COLUMN=VALUE`` rules for the rows that neighbours come from, such as ``licence=CC0-1.0``.
        config: the config of the model; the one beside the checkpoint if not given.
        same_outline: correlation of outlines from which on a neighbour is a copy of a nearer one and left out; above 1
            none is. As in training if not given.
        agree: the neighbours after the first are those whose outlines agree most with the first, among this many
            nearest rows; 1 takes the nearest ones. As the model's config says if not given.
        generator: in place of a checkpoint, a pipeline of diffusers: its folder, or its name on the hub; it needs a
            database.
        adapter: the file of the IP-Adapter that shows it the neighbours.
        image_encoder: the folder of the adapter's image encoder, if it is not beside the adapter or in the pipeline;
            ``database`` says that the embedder of the database is that encoder.

    Raises:
        FileNotFoundError: there is no such checkpoint, config or database.
        ValueError: weights or database do not fit.
    """
    from rdm.sampling.pipeline import Pipeline

    return Pipeline.load(
        checkpoint, database, only, config, same_outline, agree,
        generator=generator, adapter=adapter, image_encoder=image_encoder,
    )  # fmt: skip
