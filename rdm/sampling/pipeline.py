"""The pipeline: a loaded model with its database, to be called with prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ldm.pictures import image_grid
from rdm.loading import Loaded
from rdm.loading import load as load_model_and_database
from rdm.sampling.edit import edit_picture
from rdm.sampling.samples import sample_texts


class Pipeline(Loaded):
    """A loaded model that makes images when it is called, see :class:`rdm.loading.Loaded`."""

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        neighbours: int | None = None,
        seed: int = 0,
        scale: float = 2.0,
        **options: Any,
    ) -> list[Image.Image]:
        """Returns an image for each prompt.

        Args:
            prompts: a text, or several.
            neighbours: how many of each text's neighbours the model sees; as many as in training where not given.
            seed: of the first image; the next ones count on.
            scale: of guidance, 1 for none.
            options: ``steps``, ``sampler``, or of an autoregressive model ``temperature``, ``top_k`` and ``top_p``, and
                all others of :func:`sample_texts`. Copies are looked for only where ``copies`` is given, for plain
                pictures have no place for a mark.
        """
        prompts, k = [prompts] if isinstance(prompts, str) else prompts, neighbours or self.model.conditioner.k
        samples = sample_texts(self, prompts, k=k, seed=seed, scale=scale, **{"copies": None, **options})
        return _as_pictures(samples.images)

    def edit(
        self,
        picture: str | Path,
        prompt: str | None = None,
        *,
        n: int = 1,
        neighbours: int | None = None,
        seed: int = 0,
        scale: float = 2.0,
        **options: Any,
    ) -> list[Image.Image]:
        """Returns n images made of a picture in a file, with the neighbours of a prompt or of the picture itself.

        Args:
            picture: a file.
            prompt: a text.
            n: number of images.
            neighbours: see :meth:`__call__`, like ``seed`` and ``scale``.
            seed: likewise.
            scale: likewise.
            options: ``mask``, ``outpaint``, ``strength``, ``invert`` and all others of
                :func:`rdm.sampling.edit.edit_picture`.
        """
        k = neighbours or self.model.conditioner.k
        options = {"copies": None, **options}
        samples = edit_picture(self, picture, n, prompt=prompt, k=k, seed=seed, scale=scale, **options)
        return _as_pictures(samples.images)


def load(
    checkpoint: str | None = None, database: str | None = None, only: Sequence[str] = (), config: str | None = None
) -> Pipeline:
    """Returns a pipeline, see :func:`rdm.loading.load`."""
    return Pipeline(**vars(load_model_and_database(checkpoint, database, only, config)))


def _as_pictures(images: Tensor) -> list[Image.Image]:
    return [to_pil_image(image_grid({"": image[None]}, gap=0)) for image in images]
