"""A pipeline of diffusers for a retrieval-augmented diffusion model, which finds the neighbours of a text by itself.

This file is part of an exported folder. It needs torch, numpy, diffusers, safetensors and open_clip, and nothing else::

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    image = pipe("a red guitar", generator=torch.Generator().manual_seed(0)).images[0]

Source: Blattmann et al. 2022, Semi-Parametric Neural Image Synthesis.
"""

# Without `from __future__ import annotations`, because diffusers reads the types of the constructor's arguments.
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor


@dataclass
class RetrievalOutput(BaseOutput):
    """Images with the neighbours that they were made from.

    Attributes:
        images: PIL images, or with ``output_type="pt"`` or ``"np"`` an array in [0, 1] of diffusers' shape.
        rows: ``[B, K] int64``, the places of the neighbours in the exported rows, nearest first.
        scores: ``[B, K] float32``, their cosine similarity to the text; 1 for rows that were given.
        neighbours: of each image, what is known of its neighbours: row of the database, id, caption, licence and so on.
    """

    images: Any
    rows: np.ndarray
    scores: np.ndarray
    neighbours: list[list[dict[str, Any]]]


class RetrievalAugmentedPipeline(DiffusionPipeline):
    """Samples images of the neighbours of texts.

    Args:
        unet: a ``UNet2DConditionModel``, whose context are the embeddings of the neighbours.
        scheduler: a scheduler of diffusers; the exported one takes the steps of DDIM.
        retriever: finds the neighbours, see ``retriever/retriever.py``.
        vae: the first stage, if it is an ``AutoencoderKL``.
        vqvae: the first stage, if it is a ``VQModel``.
        reference_encoder: for a model that also sees the latents of the neighbours, see
            ``reference_encoder/reference_encoder.py``.
        k: number of neighbours in training.
        context_length: length that embeddings are scaled to; None leaves them raw.
        reference_agreement: the latents of a neighbour that was found for a text are shown only if its outline
            correlates at least this much with that of the first one; None shows all.
    """

    _optional_components = ["vae", "vqvae", "reference_encoder"]
    config: Any
    unet: Any
    scheduler: Any
    retriever: Any
    vae: Any
    vqvae: Any
    reference_encoder: Any

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        retriever: Any,
        vae: Any = None,
        vqvae: Any = None,
        reference_encoder: Any = None,
        k: int = 4,
        context_length: float | None = None,
        reference_agreement: float | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet, scheduler=scheduler, retriever=retriever, vae=vae, vqvae=vqvae,
            reference_encoder=reference_encoder,
        )  # fmt: skip
        self.register_to_config(k=k, context_length=context_length, reference_agreement=reference_agreement)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        rows: Sequence[Sequence[int]] | None = None,
        num_neighbours: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        reference_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> RetrievalOutput:
        """Samples one image for each text, or for each list of rows.

        Args:
            prompt: one text or several.
            rows: instead of texts, the places of the neighbours in the exported rows, a list for each image.
            num_neighbours: number of neighbours of each text; as in training if not given.
            num_inference_steps: number of denoising steps.
            guidance_scale: scale of classifier-free guidance; 1 samples without it.
            reference_scale: guidance scale of the neighbours' latents, if the model sees them; if not given, it is 5,
                or 1 with a guidance scale of 1.
            generator: of the initial noise; a list has one for each image.
            output_type: ``pil``, ``pt`` or ``np``.

        Raises:
            ValueError: neither texts nor rows are given, or both; an argument does not accept its value.
        """
        if (prompt is None) == (rows is None):
            raise ValueError("got both or neither of prompt and rows, expected one of them")
        if output_type not in ("pil", "pt", "np"):
            raise ValueError(f"got output_type='{output_type}', expected pil, pt or np")
        if prompt is not None:
            texts = [prompt] if isinstance(prompt, str) else list(prompt)
            chosen, scores = self.retriever.nearest(self.retriever.embed(texts), num_neighbours or self.config.k)
        else:
            chosen = self.retriever.checked(rows)
            scores = np.ones(chosen.shape, np.float32)
        least = self.config.reference_agreement if rows is None else None
        latent = self._sample(chosen, least, num_inference_steps, guidance_scale, reference_scale, generator)
        stage = self.vae if self.vae is not None else self.vqvae
        images = (stage.decode(latent / stage.config.scaling_factor).sample.float() / 2 + 0.5).clamp(0, 1).cpu()
        known = [[self.retriever.known(row) for row in line] for line in chosen.tolist()]
        return RetrievalOutput(_as_type(images, output_type), chosen, scores, known)

    def _sample(
        self,
        rows: np.ndarray,
        least: float | None,
        steps: int,
        scale: float,
        reference_scale: float | None,
        generator: Any,
    ) -> Tensor:
        """Returns the latents ``[B, C, h, w]`` of images with the neighbours ``rows [B, K]``.

        Latents of neighbours are shown if their outlines correlate at least ``least`` with that of the first one.
        """
        device, dtype = self._execution_device, self.unet.dtype
        tokens = torch.from_numpy(self.retriever.embeddings(rows)).to(device, dtype)
        if self.config.context_length is not None:
            tokens = F.normalize(tokens, dim=-1) * self.config.context_length
        if reference_scale is None:
            reference_scale = 1.0 if scale == 1 else 5.0
        seen = self._conditions(rows, least, tokens, scale, reference_scale)
        side, channels = self.unet.config.sample_size, self.unet.config.out_channels
        x = randn_tensor((len(rows), channels, side, side), generator=generator, device=device, dtype=dtype)
        self.scheduler.set_timesteps(steps, device=device)
        context = torch.cat([each for each, _, _ in seen])
        planes = [each for _, each, _ in seen if each is not None]
        x = x * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            inputs = torch.cat([self.scheduler.scale_model_input(x, t)] * len(seen))
            if planes:
                inputs = torch.cat([inputs, torch.cat(planes)], dim=1)
            found = self.unet(inputs, t, encoder_hidden_states=context).sample.chunk(len(seen))
            eps = sum((weight * each for (_, _, weight), each in zip(seen[1:], found[1:], strict=True)), 0)
            eps = eps + seen[0][2] * found[0]
            x = self.scheduler.step(eps, t, x).prev_sample
        return x

    def _conditions(
        self, rows: np.ndarray, least: float | None, tokens: Tensor, scale: float, reference_scale: float
    ) -> list[tuple[Tensor, Tensor | None, float]]:
        """Returns what the U-Net sees in each of its passes, and the weight of that pass; the weights sum to 1.

        With guidance the prediction is ``eps_null + scale * (eps_tokens - eps_null)``, and with latents of the
        neighbours ``... + reference_scale * (eps_both - eps_tokens)``. A pass of weight 0 is left out.

        Returns:
            Tokens ``[B, K, D]``, the channels ``[B, C', h, w]`` of the neighbours' latents if the model sees them, and
            the weight.
        """
        null = torch.zeros_like(tokens)
        if self.reference_encoder is None:
            passes: list[Any] = [(null, None, 1 - scale), (tokens, None, scale)]
        else:
            latents = torch.from_numpy(self.retriever.latents(rows, least)).to(tokens)
            shown, none = (self._planes(each) for each in (latents, torch.zeros_like(latents)))
            passes = [
                (null, none, 1 - scale),
                (tokens, none, scale - reference_scale),
                (tokens, shown, reference_scale),
            ]
        return [each for each in passes if each[2] != 0]

    def _planes(self, latents: Tensor) -> Tensor:
        """Returns the channels beside those of x_t: folded references, and the strength of their noise, which is 0."""
        folded = self.reference_encoder(latents)
        return torch.cat([folded, torch.zeros_like(folded[:, :1])], dim=1)


def _as_type(images: Tensor, output_type: str) -> Any:
    """Returns images ``[B, 3, H, W]`` in [0, 1] in the form that diffusers' users ask for."""
    if output_type == "pt":
        return images
    arrays = images.permute(0, 2, 3, 1).numpy()
    if output_type == "np":
        return arrays
    pixels = (arrays * 255).round().astype(np.uint8)
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in pixels]
