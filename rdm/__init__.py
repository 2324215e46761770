"""Retrieval-augmented diffusion: latent diffusion that looks at the neighbours of each image in a database.

``rdm.load()`` is the short way to images; the scripts go the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdm.sampling.pipeline import Pipeline


def load(checkpoint: str | None = None, database: str | None = None, only: Sequence[str] = ()) -> Pipeline:
    """Returns a model ready to sample, see :func:`rdm.loading.load`; torch is imported now, not with the package."""
    from rdm.sampling.pipeline import load as load_pipeline

    return load_pipeline(checkpoint, database, only)
