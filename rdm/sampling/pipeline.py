"""The pipeline: a trained model with its database, which samples images when it is called with prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ldm.data.decode import Size
from ldm.models.diffusion.ddpm import CLASSES
from ldm.models.diffusion.stepping import Watch
from ldm.pictures import as_picture, to_uint8
from rdm.generators.loading import load_generator
from rdm.loading import Loaded, load
from rdm.sampling.edit import edit
from rdm.sampling.given import Picture
from rdm.sampling.request import Request
from rdm.sampling.samples import sample
from rdm.sampling.settings import Settings
from rdm.sampling.values import IMAGE_WEIGHT, NEGATIVE_WEIGHT, REPEATS, check_arguments
from rdm.sampling.ways import classes, popular, texts


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
        only: str | Sequence[str] = (),
        config: str | None = None,
        same_outline: float | None = None,
        agree: int | None = None,
        *,
        generator: str | None = None,
        adapter: str | None = None,
        image_encoder: str | None = None,
    ) -> Pipeline:
        """Returns a pipeline that is ready to sample.

        For the arguments see :func:`rdm.loading.load`; with a ``generator``, a pipeline of diffusers, see
        :func:`rdm.generators.loading.load_generator`.

        Raises:
            ValueError: a generator is given with a checkpoint, or its adapter without it.
        """
        if generator is None:
            for name, value in {"adapter": adapter, "image_encoder": image_encoder}.items():
                if value is not None:
                    raise ValueError(f"got {name}={value} without a generator, which it is for; give a generator")
            return cls(**vars(load(checkpoint, database, only, config, same_outline, agree)))
        if checkpoint is not None:
            raise ValueError(f"got checkpoint {checkpoint} and generator {generator}, expected one of them")
        loaded = load_generator(generator, adapter, database, only, config, same_outline, agree, image_encoder)
        return cls(**vars(loaded))

    def __call__(
        self,
        prompts: str | int | Sequence[str | int] | None = None,
        *,
        n: int | None = None,
        neighbours: int | None = None,
        seed: int = 0,
        tokens: str = "neighbours",
        image: Picture | None = None,
        image_weight: float = IMAGE_WEIGHT,
        negative: str | None = None,
        negative_weight: float = NEGATIVE_WEIGHT,
        watch: Watch | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """Samples one image for each prompt, or unconditional images.

        Args:
            prompts: one text or several; of a plain class-conditional model, names or numbers of classes. Without any,
                the images are unconditional.
            n: number of images without prompts; 1 if not given.
            neighbours: number of neighbours of each image; if not given, as many as in training.
            seed: the seed of the first image; image i has the seed ``seed + i``.
            tokens: see :func:`rdm.sampling.ways.texts`; this also holds for the arguments up to ``negative_weight``.
            image: see there.
            image_weight: see there.
            negative: see there.
            negative_weight: see there.
            watch: see :func:`rdm.sampling.samples.sample`.
            settings: the attributes of :class:`Settings`, such as ``scale``, ``steps`` and ``sampler``.

        Raises:
            ValueError: a setting is unknown or does not accept its value, or options contradict each other.
        """
        chosen = Settings.of(**settings)
        check_arguments(neighbours=neighbours)
        chosen.check_tokens(tokens)
        if prompts is None:
            options = {"image": image, "negative": negative, "tokens": tokens if tokens != "neighbours" else None}
            if given := [name for name, value in options.items() if value is not None]:
                raise ValueError(f"got {given[0]} without a prompt; give a prompt")
            return self._pictures(popular(self, 1 if n is None else n, k=neighbours, seed=seed), chosen, watch)
        if n is not None:
            raise ValueError(f"got n={n} with prompts, of which each gives one image; repeat prompts, or leave out n")
        listed: list[Any] = [prompts] if isinstance(prompts, str | int) else list(prompts)
        if self.is_plain and self.plain.reads == CLASSES:
            names = [str(each) for each in listed]
            return self._pictures(classes(self, names, k=neighbours, seed=seed, tokens=tokens), chosen, watch)
        request = texts(
            self,
            listed,
            k=neighbours,
            seed=seed,
            tokens=tokens,
            image=image,
            image_weight=image_weight,
            negative=negative,
            negative_weight=negative_weight,
        )
        return self._pictures(request, chosen, watch)

    def edit(
        self,
        picture: Picture,
        prompt: str | None = None,
        *,
        class_name: str | None = None,
        n: int = 1,
        neighbours: int | None = None,
        seed: int = 0,
        mask: Picture | None = None,
        outpaint: Sequence[int] | None = None,
        size: Size | None = None,
        strength: float | None = None,
        repeats: int = REPEATS,
        invert: bool = False,
        tokens: str = "neighbours",
        negative: str | None = None,
        negative_weight: float = NEGATIVE_WEIGHT,
        watch: Watch | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """Samples n edits of a picture, with the neighbours of a prompt or of the picture itself.

        Args:
            picture: the picture, or its file.
            prompt: the text that neighbours are looked up with, or that a plain model reads.
            class_name: the name or number of the class that a plain class-conditional model sees.
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
            watch: see :func:`rdm.sampling.samples.sample`.
            settings: see :meth:`__call__`.

        Raises:
            FileNotFoundError: the picture or the mask does not exist.
            ValueError: a setting is unknown or does not accept its value, or options contradict each other.
        """
        chosen = Settings.of(**settings)
        check_arguments(neighbours=neighbours)
        chosen.check_tokens(tokens)
        request = edit(
            self,
            picture,
            n,
            prompt=prompt,
            class_name=class_name,
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
        return self._pictures(request, chosen, watch)

    def _pictures(self, request: Request, settings: Settings, watch: Watch | None) -> list[Image.Image]:
        samples = sample(self, request, settings, watch)
        return [as_picture(to_uint8(image)) for image in samples.images]
