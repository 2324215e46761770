"""The pipeline: a trained model with its database, which samples images when it is called with prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms.functional import to_pil_image

from ldm.data.decode import Size
from ldm.pictures import to_uint8
from rdm.loading import Loaded, load
from rdm.sampling.edit import edit
from rdm.sampling.request import Request
from rdm.sampling.samples import sample
from rdm.sampling.settings import IMAGE_WEIGHT, NEGATIVE_WEIGHT, REPEATS, Settings
from rdm.sampling.ways import texts


class Pipeline(Loaded):
    """A trained model with its database. It has the attributes of :class:`rdm.loading.Loaded`.

    Call the pipeline to sample from texts, and :meth:`edit` to edit a picture. For all other requests, make a request
    with :mod:`rdm.sampling.ways` and pass it to :func:`rdm.sampling.samples.sample`.
    """

    @classmethod
    def load(
        cls,
        checkpoint: str | None = None,
        database: str | None = None,
        only: Sequence[str] = (),
        config: str | None = None,
        same_outline: float | None = None,
    ) -> Pipeline:
        """Returns a pipeline that is ready to sample, see :func:`rdm.loading.load`."""
        return cls(**vars(load(checkpoint, database, only, config, same_outline)))

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
        """Samples one image for each prompt.

        Args:
            prompts: one text or several.
            neighbours: number of neighbours of each image; if not given, as many as in training.
            seed: the seed of the first image; image i has the seed ``seed + i``.
            tokens: see :func:`rdm.sampling.ways.texts`; this also holds for the arguments up to ``negative_weight``.
            image: see there.
            image_weight: see there.
            negative: see there.
            negative_weight: see there.
            settings: the attributes of :class:`Settings`, such as ``scale``, ``steps`` and ``sampler``.

        Raises:
            ValueError: a setting is unknown or does not accept its value.
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
        size: Size | None = None,
        strength: float | None = None,
        repeats: int = REPEATS,
        invert: bool = False,
        tokens: str = "neighbours",
        negative: str | None = None,
        negative_weight: float = NEGATIVE_WEIGHT,
        **settings: Any,
    ) -> list[Image.Image]:
        """Samples n edits of a picture, with the neighbours of a prompt or of the picture itself.

        Args:
            picture: the file of the picture.
            prompt: the text that neighbours are looked up with.
            n: number of images.
            neighbours: number of neighbours of each image; if not given, as many as in training.
            seed: the seed of the first image; image i has the seed ``seed + i``.
            mask: see :func:`rdm.sampling.edit.edit`; this also holds for the arguments up to ``negative_weight``.
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
            FileNotFoundError: the picture or the mask does not exist.
            ValueError: a setting is unknown or does not accept its value, or options contradict each other.
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
