"""How long it takes to adapt a model to pictures on this machine, measured before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.metrics import psnr
from ldm.precision import AUTO, fastest_precision
from ldm.util import evenly, instantiate_from_config
from rdm.retrieval.config import on_this_machine
from rdm.retrieval.embedder import embed_images
from rdm.sampling.adapt import Adaptation
from rdm.sampling.generate import generate
from rdm.sampling.settings import Settings

SAMPLE = 32  # pictures that are measured
READS = 4  # times that a picture is read before the training: for the database, two tables and its latent
FIRST_STAGE_DB = 28.3  # PSNR of the shipped first stage on emoji that it never saw


@dataclass(frozen=True)
class Forecast:
    """Seconds that the steps of an adaptation take.

    Attributes:
        pictures: number of pictures.
        batch: pictures in a training step.
        reading: of a picture.
        embedding: of a picture.
        encoding: of a picture by the first stage.
        step: of training.
        image: of sampling.
        psnr: of the pictures after the first stage, in dB, the mean over pictures.
    """

    pictures: int
    batch: int
    reading: float
    embedding: float
    encoding: float
    step: float
    image: float
    psnr: float

    def preparing(self) -> float:
        """Returns the seconds until the training begins: database, neighbours, and latents of the neighbours."""
        return self.pictures * (READS * self.reading + 2 * self.embedding + self.encoding)

    def minutes(self, training: float, images: int, starting: float) -> float:
        """Returns the minutes of everything.

        Args:
            training: minutes of training.
            images: number of images that are sampled.
            starting: seconds that a process takes until it has loaded its model.
        """
        return training + (self.preparing() + images * self.image + 2 * starting) / 60

    def describe(self, training: float, images: int, starting: float) -> str:
        """Returns the forecast in words; the arguments are those of :meth:`minutes`."""
        steps = 60 * training / self.step
        passes = steps * self.batch / self.pictures
        whole = self.minutes(training, images, starting)
        return (
            f"measured on this machine: {1000 * self.reading:.1f} ms to read and {1000 * self.embedding:.1f} ms to "
            f"embed a picture, {self.step:.2f} s for a training step of {self.batch} pictures, {self.image:.1f} s for "
            f"an image\n"
            f"this will take about {whole:.0f} minutes: {self.preparing() / 60:.1f} to build the database and to find "
            f"neighbours, {training:g} to train (about {steps:.0f} steps, each picture {passes:.0f} times), and "
            f"{images * self.image / 60:.1f} for {images} images; it ends at about "
            f"{time.strftime('%H:%M', time.localtime(time.time() + 60 * whole))}"
        )

    def advice(self) -> str:
        """Returns words on a first stage that reconstructs the pictures badly; empty for one that does not."""
        if self.psnr >= FIRST_STAGE_DB - 3:
            return ""
        return (
            f"the first stage reconstructs these pictures with {self.psnr:.1f} dB (the shipped one reaches "
            f"{FIRST_STAGE_DB} dB on emoji), so images stay blurred, however long the diffusion model is trained; "
            "docs/own.md says how to train the first stage on your pictures"
        )


def calibrate(adaptation: Adaptation, count: int = SAMPLE) -> Forecast:
    """Returns how long the parts of an adaptation take: each is done once for a few pictures.

    Args:
        adaptation: the adaptation.
        count: number of pictures to read and embed.

    Raises:
        ValueError: none of the pictures can be read.
    """
    images, params = adaptation.pictures.images, adaptation.config["data"]["params"]
    numbers = evenly(len(images), min(count, len(images)))
    reading, items = _timed(lambda: [images[number] for number in numbers])
    decoded = [item["image"] for item in items]
    names = [item["id"] for item in items]
    embedder = adaptation.embedder
    embed_images(embedder, decoded[:2], names[:2])  # the first call of a network also prepares it
    embedding, vectors = _timed(lambda: embed_images(embedder, decoded, names))
    model: Any = on_this_machine(instantiate_from_config(adaptation.config["model"]))
    pixels = torch.stack(decoded).to(model.device)
    model.to_latent(pixels[:2])
    encoding, latents = _timed(lambda: model.to_latent(pixels))
    quality = psnr(model.to_image(latents).clamp(-1, 1), pixels).mean().item()
    size, k = params["batch_size"], params["k"]
    places = torch.arange(size)[:, None] + torch.arange(1, k + 1)  # any other pictures take the place of neighbours
    shown = _batch(model, torch.from_numpy(vectors), latents, places % len(items))
    precision = adaptation.config["lightning"]["trainer"].get("precision", "32-true")
    on_gpu = model.device.type == "cuda"
    half = "bf16" in str(fastest_precision(on_gpu) if precision == AUTO else precision)
    sampling = _sampling_seconds(model, shown, latents.shape[1:])
    step = _step_seconds(model, latents[torch.arange(size) % len(items)], shown, half)
    return Forecast(
        pictures=len(images),
        batch=size,
        reading=reading / len(items),
        embedding=embedding / len(items),
        encoding=encoding / len(items),
        step=step,
        image=sampling,
        psnr=quality,
    )


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds that a piece of work takes, and its result."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def _batch(model: Any, vectors: Tensor, latents: Tensor, places: Tensor) -> dict[str, Tensor]:
    """Returns what a model reads of the neighbours ``places [B, K]`` of its images."""
    batch = {model.neighbours_key: vectors[places].to(model.device)}
    if model.references is not None:
        batch[model.references.key] = latents[places] / model.scale_factor
    if model.grid_tokens is not None:
        shape = (*places.shape, model.conditioner.grid**2, model.conditioner.token_width)
        batch["neighbour_tokens"] = torch.zeros(shape, device=model.device)
    return batch


def _sampling_seconds(model: Any, batch: dict[str, Tensor], shape: Sequence[int]) -> float:
    """Returns the seconds that an image takes."""
    settings = Settings().for_model(model)
    count = settings.batch_size or 1
    with torch.no_grad():
        context = model.context({name: value[:1].repeat_interleave(count, 0) for name, value in batch.items()})
    parts = [] if model.references is None else [(context, 2.0)]
    seconds = _timed(lambda: generate(model, context, shape, range(count), settings, parts))[0]
    return seconds / count


def _step_seconds(model: Any, latents: Tensor, batch: dict[str, Tensor], half: bool) -> float:
    """Returns the seconds of a training step; the first of two steps also prepares the networks."""
    model.train()
    optimizer = model.configure_optimizers()["optimizer"]
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        t = torch.randint(len(model.schedule), (len(latents),), generator=generator).to(latents.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            losses = model.losses(latents, model.context(batch), t, torch.randn_like(latents))
        optimizer.zero_grad()
        losses["loss"].mean().backward()
        optimizer.step()
        if model.model_ema is not None:
            model.model_ema(model.model)

    _timed(step)
    return _timed(step)[0]
