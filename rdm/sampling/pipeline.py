"""The pipeline: a trained model and its database, which makes images when it is called with prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms.functional import to_pil_image

from ldm.pictures import to_uint8
from rdm.loading import Loaded, load
from rdm.sampling.edit import edit
from rdm.sampling.request import Request
from rdm.sampling.samples import sample
from rdm.sampling.settings import IMAGE_WEIGHT, NEGATIVE_WEIGHT, REPEATS, Settings
from rdm.sampling.ways import texts


class Pipeline(Loaded):
    """A trained model and its database; attributes are those of :class:`rdm.loading.Loaded`.

    Images of other requests than texts and edits are made by ``sample(pipeline, request, settings)``, see
    :mod:`rdm.sampling.ways` and :func:`rdm.sampling.samples.sample`.
    """

    @classmethod
    def load(
        cls,
        checkpoint: str | None = None,
        database: str | None = None,
        only: Sequence[str] = (),
        config: str | None = None,
    ) -> Pipeline:
        """Returns a pipeline ready to sample, see :func:`rdm.loading.load`."""
        return cls(**vars(load(checkpoint, database, only, config)))

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        neighbours: int | None = None,
        seed: int = 0,
        tokens: str = "neighbours",
        image: str | Path | None = None,
        image_weight: float = IMAGE_WEIGHT,
        negative: str | None = None,
        negative_weight: float = NEGATIVE_WEIGHT,
        **settings: Any,
    ) -> list[Image.Image]:
        """Returns an image for each prompt.

        Args:
            prompts: a text, or several.
            neighbours: number of each text's neighbours that the model sees; as many as in training if not given.
            seed: of the first image; image i has ``seed + i``.
            tokens: what the model sees, see :func:`rdm.sampling.ways.texts`, like all up to ``negative_weight``.
            image: see there.
            image_weight: see there.
            negative: see there.
            negative_weight: see there.
            settings: ``scale``, ``steps``, ``sampler`` and all others of :class:`Settings`.

        Raises:
            ValueError: an unknown setting, or one that makes no image.
        """
        chosen = Settings.of(**settings)
        request = texts(
            self,
            [prompts] if isinstance(prompts, str) else prompts,
            k=neighbours,
            seed=seed,
            tokens=tokens,
            image=image,
            image_weight=image_weight,
            negative=negative,
            negative_weight=negative_weight,
        )
        return self._pictures(request, chosen)

    def edit(
        self,
        picture: str | Path,
        prompt: str | None = None,
        *,
        n: int = 1,
        neighbours: int | None = None,
        seed: int = 0,
        mask: str | Path | None = None,
        outpaint: Sequence[int] | None = None,
        size: int | None = None,
        strength: float | None = None,
        repeats: int = REPEATS,
        invert: bool = False,
        tokens: str = "neighbours",
        negative: str | None = None,
        negative_weight: float = NEGATIVE_WEIGHT,
        **settings: Any,
    ) -> list[Image.Image]:
        """Returns n images made of a picture in a file, with the neighbours of a prompt or of the picture itself.

        Args:
            picture: a file.
            prompt: a text.
            n: number of images.
            neighbours: see :meth:`__call__`, like ``seed`` and ``settings``.
            seed: see there.
            mask: see :func:`rdm.sampling.edit.edit`, like all up to ``negative_weight``.
            outpaint: see there.
            size: see there.
            strength: see there.
            repeats: see there.
            invert: see there.
            tokens: see there.
            negative: see there.
            negative_weight: see there.
            settings: see :meth:`__call__`.

        Raises:
            FileNotFoundError: there is no such picture or mask.
            ValueError: an unknown setting, or one that makes no image.
        """
        chosen = Settings.of(**settings)
        request = edit(
            self,
            picture,
            n,
            prompt=prompt,
            k=neighbours,
            seed=seed,
            mask=mask,
            outpaint=outpaint,
            size=size,
            strength=strength,
            repeats=repeats,
            invert=invert,
            tokens=tokens,
            negative=negative,
            negative_weight=negative_weight,
        )
        return self._pictures(request, chosen)

    def _pictures(self, request: Request, settings: Settings) -> list[Image.Image]:
        samples = sample(self, request, settings)
        return [to_pil_image(to_uint8(image)) for image in samples.images]
