"""A pipeline of diffusers with image prompts by an IP-Adapter, in the place of a model of this project.

Only small files are read at first: what the pipeline is and what the adapter takes. The weights are loaded for the
first images, in the precision that the settings name.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.stepping import Watch
from rdm.generators.adapter import HIDDEN, Adapter
from rdm.generators.encoder import ImageEncoder, find_encoder
from rdm.generators.folder import class_of, config_of, find_pipeline, variant_of
from rdm.generators.library import check_accelerate, diffusers_library, quiet
from rdm.generators.memory import check_memory, forecast, free_memory, parameters_of, tile_side
from rdm.retrieval.embedder import Embedder
from rdm.sampling.canvas import Canvas
from rdm.sampling.settings import DIFFUSERS, Settings

LOG = logging.getLogger(__name__)
K = 4  # neighbours of an image, if their number is not given
# The classes of schedulers for the names of our samplers, with what they are configured with.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
TEXT_TO_IMAGE = "AutoPipelineForText2Image"
IMAGE_TO_IMAGE = "AutoPipelineForImage2Image"
INPAINTING = "AutoPipelineForInpainting"
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ImagePrompts:
    """What the adapter is shown of each image's neighbours.

    Attributes:
        shown: ``[B, K, D]`` vectors of pictures, or ``[B, K, T, D]`` hidden states.
        nothing: what stands for no picture in classifier-free guidance, of the same shape.
    """

    shown: Tensor
    nothing: Tensor


class DiffusersPipeline:
    """A Stable Diffusion or SDXL pipeline with an adapter.

    Args:
        name: the folder of the pipeline in the form of diffusers, or its name on the hub, from which it is downloaded.
        adapter: the file of the adapter.
        image_encoder: the folder of the adapter's image encoder; if not given, ``image_encoder`` beside the adapter or
            in the pipeline. ``database`` says that the embedder of the database is that encoder.

    Attributes:
        folder: the folder of the pipeline.
        class_name: the class that the pipeline was saved as.
        device: where it draws.
        image_size: the usual height and width of its images.
        side_multiple: sides of images are multiples of this.
        encoder: the folder of the image encoder; None if there is none.
        trusts_database: whether the embedder of the database counts as the adapter's encoder unseen.

    Raises:
        FileNotFoundError: the pipeline, the adapter or the encoder does not exist.
        ValueError: diffusers is not installed, or the pipeline takes no image prompts, or the adapter does not fit it.
    """

    kind = DIFFUSERS
    k = K
    image_channels = 3

    def __init__(self, name: str, adapter: str, image_encoder: str | None = None) -> None:
        self.name, self.folder = name, find_pipeline(name)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.class_name = class_of(self.folder)
        self.adapter = Adapter.open(adapter)
        config = config_of(self.folder, "unet")
        if (context := config.get("cross_attention_dim")) != self.adapter.context:
            raise ValueError(
                f"adapter {adapter} makes tokens of width {self.adapter.context}, pipeline {name} sees tokens of width "
                f"{context}; give an adapter that was trained for this pipeline"
            )
        self.trusts_database = image_encoder == "database"
        if self.trusts_database and self.adapter.takes == HIDDEN:
            raise ValueError(
                f"adapter {adapter} takes hidden states, which a database does not hold; give its encoder as "
                "--image_encoder FOLDER"
            )
        given = None if self.trusts_database else image_encoder
        self.encoder = None if self.trusts_database else find_encoder(self.adapter, self.folder, given)
        blocks = config_of(self.folder, "vae")["block_out_channels"]
        self.channels, self.side_multiple = int(blocks[min(1, len(blocks) - 1)]), 2 ** (len(blocks) - 1)
        side = int(config["sample_size"]) * self.side_multiple
        self.image_size = (side, side)
        self._encoders: dict[str, ImageEncoder] = {}
        self._same: dict[str, bool] = {}
        self._loaded: tuple[Any, Any] = (None, None)  # precision, offload and task; the pipeline for them

    @functools.cached_property
    def parameters(self) -> dict[str, int]:
        """The number of weights of each network and of the adapter."""
        return {**parameters_of(self.folder), "adapter": self.adapter.path.stat().st_size // 4}

    def usual_options(self, sampler: str | None) -> dict[str, Any]:  # noqa: ARG002 (the pipeline says all of them)
        """Returns the usual values of settings that are None: those of the pipeline's own call."""
        found = inspect.signature(getattr(diffusers_library(), self.class_name).__call__).parameters
        return {
            "scale": float(found["guidance_scale"].default),
            "steps": int(found["num_inference_steps"].default),
            "batch_size": 1,
        }

    def check(self, settings: Settings, size: Sequence[int]) -> None:
        """Checks that images of a size can be drawn with completed settings.

        Raises:
            ValueError: they cannot; among others, the forecast of memory is more than is free.
        """
        height, width = size
        if height % self.side_multiple or width % self.side_multiple:
            raise ValueError(
                f"got images of {height}x{width} pixels, expected multiples of {self.side_multiple} for {self.name}"
            )
        if settings.offload != "none":
            if self.device.type == "cpu":
                raise ValueError(f"got offload={settings.offload} on a machine without a GPU; leave out offload")
            check_accelerate()
        itemsize, batch = DTYPES[settings.precision].itemsize, settings.batch_size or 1
        side = self._tile(settings)
        decoded = (height, width) if side is None else (min(side, height), min(side, width))
        need = forecast(
            {} if self._is_loaded(settings) else self.parameters, decoded,
            channels=self.channels, batch=batch, itemsize=itemsize, offload=settings.offload,
        )  # fmt: skip
        offload = "" if self.device.type == "cpu" or settings.offload != "none" else ", --offload model"
        remedy = f"give smaller images, --batch_size 1, --tile 512, --precision bf16{offload}"
        check_memory(self.name, need, free_memory(self.device.type), remedy)

    def _is_loaded(self, settings: Settings) -> bool:
        return self._loaded[0] is not None and self._loaded[0][:2] == (settings.precision, settings.offload)

    def _tile(self, settings: Settings) -> int | None:
        if settings.tile is None:
            return None
        itemsize, batch = DTYPES[settings.precision].itemsize, settings.batch_size or 1
        return tile_side(
            settings.tile, channels=self.channels, batch=batch, itemsize=itemsize, multiple=self.side_multiple
        )

    def image_encoder(self, precision: str = "32") -> ImageEncoder:
        """Returns the image encoder of the adapter, which is loaded once for each precision."""
        if precision not in self._encoders:
            folder: Any = self.encoder
            dtype = DTYPES[precision]
            self._encoders[precision] = ImageEncoder(folder, self.adapter, self.folder, self.device.type, dtype)
        return self._encoders[precision]

    def has_encoder_of(self, embedder: Embedder) -> bool:
        """Returns whether the adapter's image encoder is an embedder; both embed one picture for the first answer."""
        if embedder.fingerprint not in self._same:
            same = self._same[embedder.fingerprint] = self.image_encoder().is_that_of(embedder)
            if same:
                self._encoders.clear()  # the vectors are there already
            words = "as they are" if same else "for the search only, as the encoder of the adapter is another network"
            LOG.info("the vectors of %s are used %s", embedder.name, words)
        return self._same[embedder.fingerprint]

    def draw(
        self,
        prompts: Sequence[str],
        neighbours: ImagePrompts | None,
        seeds: Sequence[int],
        settings: Settings,
        canvas: Canvas | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Returns one image for each prompt, ``[B, 3, H, W]`` in [-1, 1].

        Args:
            prompts: the texts; an empty one stands for none.
            neighbours: what the adapter is shown; None leaves it out, which is the pipeline without an adapter.
            seeds: the seed of each image, which alone makes its noise.
            settings: the settings, completed for this pipeline.
            canvas: the picture that is edited, with the sides that the pipeline divides.
            watch: told after each step, see :func:`rdm.sampling.samples.sample`.
        """
        task = TEXT_TO_IMAGE if canvas is None else IMAGE_TO_IMAGE if canvas.paint is None else INPAINTING
        pipe = self._pipeline(settings, task)
        pipe.set_ip_adapter_scale(0.0 if neighbours is None else settings.neighbour_scale)
        guided = settings.scale is not None and settings.scale > 1 and pipe.unet.config.time_cond_proj_dim is None
        options: dict[str, Any] = {
            "prompt": list(prompts),
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.scale,
            "generator": [torch.Generator().manual_seed(int(seed)) for seed in seeds],
            "ip_adapter_image_embeds": [self._embeds(pipe, neighbours, len(prompts), guided)],
            "output_type": "pt",
        }
        if settings.negative_prompt is not None:
            options["negative_prompt"] = [settings.negative_prompt] * len(prompts)
        if settings.eta is not None:
            options["eta"] = settings.eta
        if watch is not None:
            options["callback_on_step_end"] = functools.partial(_tell, watch, self._decoded)
        if canvas is None:
            height, width = self.size_of(settings)
            options |= {"height": height, "width": width}
        else:
            options |= _of_canvas(canvas, len(prompts))
        known = inspect.signature(type(pipe).__call__).parameters
        images = pipe(**{name: value for name, value in options.items() if name in known}).images
        return images.float() * 2 - 1

    def size_of(self, settings: Settings) -> tuple[int, int]:
        """Returns the height and width of images."""
        return settings.height or self.image_size[0], settings.width or self.image_size[1]

    def _embeds(self, pipe: Any, neighbours: ImagePrompts | None, count: int, guided: bool) -> Tensor:
        """Returns the argument ``ip_adapter_image_embeds``, those of nothing first if there is guidance."""
        if neighbours is None:
            shape = (1, self.adapter.width) if self.adapter.takes == HIDDEN else (self.adapter.width,)
            nothing = torch.zeros(count, 1, *shape)
            neighbours = ImagePrompts(nothing, nothing)
        parts = [neighbours.nothing, neighbours.shown] if guided else [neighbours.shown]
        return torch.cat(parts).to(self.device, pipe.unet.dtype)

    def _pipeline(self, settings: Settings, task: str) -> Any:
        """Returns the pipeline for a task as the settings ask for it; the weights are loaded once for each precision.

        Raises:
            ValueError: the weights cannot be loaded, or do not fit each other.
        """
        diffusers, key = diffusers_library(), (settings.precision, settings.offload, task)
        known, pipe = self._loaded
        if known != key:
            if known is None or known[:2] != key[:2]:
                self._loaded = (None, None)  # before others take their memory
                pipe = self._with_weights(DTYPES[settings.precision])
                self._schedule = pipe.scheduler
            with quiet():
                pipe = getattr(diffusers, task).from_pipe(pipe)
            self._place(pipe, settings.offload)
            pipe.set_progress_bar_config(disable=True)
            self._loaded = (key, pipe)
        pipe.scheduler = self._schedule
        if settings.sampler is not None:
            name, changed = SCHEDULERS[settings.sampler]
            pipe.scheduler = getattr(diffusers, name).from_config(self._schedule.config, **changed)
        if (side := self._tile(settings)) is None:
            pipe.vae.disable_tiling()
        else:
            pipe.vae.enable_tiling()
            pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = side, side // self.side_multiple
        return pipe

    def _with_weights(self, dtype: torch.dtype) -> Any:
        auto = getattr(diffusers_library(), TEXT_TO_IMAGE)
        LOG.info("generator %s with adapter %s", self.folder, self.adapter.path)
        try:
            with quiet():
                pipe = auto.from_pretrained(
                    self.folder, torch_dtype=dtype, local_files_only=True, variant=variant_of(self.folder)
                )
                pipe.load_ip_adapter(self.adapter.state(), subfolder="", weight_name="", image_encoder_folder=None)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"pipeline {self.name} cannot be loaded with adapter {self.adapter.path} ({reason}); give a complete "
                "folder of a pipeline, and an adapter that was trained for it"
            ) from error
        return pipe

    def _place(self, pipe: Any, offload: str) -> None:
        """Moves the networks to where the settings ask for."""
        if offload == "none":
            pipe.to(self.device)
        elif offload == "model":
            pipe.enable_model_cpu_offload(device=self.device)
        else:
            pipe.enable_sequential_cpu_offload(device=self.device)

    def _decoded(self, latents: Tensor) -> Tensor:
        """Returns the images of latents, ``[B, 3, H, W]`` in about [-1, 1]."""
        vae = self._loaded[1].vae
        with torch.no_grad():
            return vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample


def _of_canvas(canvas: Canvas, count: int) -> dict[str, Any]:
    """Returns the arguments of an edit, of which a pipeline takes those that it has."""
    height, width = canvas.picture.shape[2:]
    options: dict[str, Any] = {
        "image": (canvas.picture / 2 + 0.5).expand(count, -1, -1, -1),
        "strength": canvas.about["strength"],
        "height": height,
        "width": width,
    }
    if canvas.paint is not None:
        options["mask_image"] = canvas.paint.expand(count, -1, -1, -1)
    return options


def _tell(watch: Watch, decoded: Any, pipe: Any, step: int, time: Any, state: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Tells a watcher of a step; the callback of a pipeline."""
    latents = state["latents"]
    watch(step + 1, pipe.num_timesteps, lambda: decoded(latents))
    return {}
