"""The retrieval-augmented autoregressive model (RARM, Blattmann et al. 2022, section 3.1): an image code by code.

The model takes neighbours from the batch; it knows nothing of databases. Images ``[B, 3, H, W]`` in [-1, 1], codes
``[B, T] int64``, the T = h w codes of a first stage row by row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import load_weights, read_weights
from ldm.lr_scheduler import StepSchedule
from ldm.models.diffusion.guidance import USUAL_SCALE, guide
from ldm.models.diffusion.stepping import Watch, seeded_generator
from ldm.models.first_stage import frozen_first_stage
from ldm.models.tiling import decode_tiled, encode_tiled
from ldm.models.training_data import check_training_data
from ldm.parallel import counted, mean, rand, rank
from ldm.util import instantiate_from_config
from rdm import compat
from rdm.models.autoregression.sampling import OnToken, Predictor, autoregress, check_choice, seeded_gumbel, watched
from rdm.models.autoregression.training import decay_groups
from rdm.models.neighbours import NeighbourConditioned, with_grid_weights
from rdm.modules.attention import Past

AGREE = 0.9  # share of the stored codes that the first stage must reproduce; rounding differs between processors


class RetrievalAugmentedTransformer(NeighbourConditioned, pl.LightningModule):
    """A causal transformer over the codes of a first stage, which attends to the neighbours of the image.

    Every sequence begins with a start token, ``sos_token``. Its number and that of ``mask_token`` are in checkpoints.

    Args:
        transformer_config: the network: codes and two more tokens in, logits of codes out.
        first_stage_config: a VQ model; its weights, those of its running average where it has one, are part of this
            model's checkpoints.
        conditioner: with the next three, see :meth:`NeighbourConditioned.set_conditioning`.
        p_uncond: see there.
        use_neighbours: see there.
        neighbours_key: see there.
        p_mask_max: in training, each number of the context is replaced by the number of the mask token, with a
            probability that every step draws anew between 0 and this.
        first_stage_key: key of a batch for the images.
        codes_key: key of a batch for the images' codes; in a batch without it, the codes are computed.
        monitor: name of the logged value that picks the best checkpoint.
        scheduler_config: factor of the learning rate by step.
        learning_rate: of AdamW.
        weight_decay: of AdamW, for matrices; biases, norms and embeddings do not decay.
        betas: of AdamW.
        ckpt_path: file of the initial weights.
        ignore_keys: beginnings of names that are not loaded from that file.
        first_stage_tile: encode and decode large images in tiles, see :mod:`ldm.models.tiling`.
        seed: of all random numbers in training; step n uses (seed, n, rank), so that a resumed run repeats none.

    Raises:
        ValueError: options contradict each other, or the weights do not fit.
    """

    kind = "autoregression"
    # Patterns of names that a checkpoint may lack or have in excess.
    optional_names: tuple[str, ...] = ("first_stage_model.model_ema.*",)
    sos_token: Tensor
    mask_token: Tensor

    def __init__(
        self,
        transformer_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        conditioner: Mapping[str, Any] | None = None,
        p_uncond: float = 0.1,
        use_neighbours: bool = True,
        neighbours_key: str = "neighbours",
        *,
        p_mask_max: float = 0.0,
        first_stage_key: str = "image",
        codes_key: str = "codes",
        monitor: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        first_stage_tile: int | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0.0 <= p_mask_max <= 1.0:
            raise ValueError(f"p_mask_max: got {p_mask_max}, expected a probability")
        self.transformer = instantiate_from_config(transformer_config)
        self.first_stage_model = frozen_first_stage(first_stage_config)
        codes, tokens = self.transformer.out_channels, self.transformer.in_channels
        stored = getattr(getattr(self.first_stage_model, "quantize", None), "n_e", None)
        if codes != stored or tokens < codes + 2:
            raise ValueError(
                f"transformer_config: got out_channels={codes}, in_channels={tokens}, expected the {stored} codes of "
                f"the first stage, and at least two more tokens"
            )
        self.register_buffer("sos_token", torch.tensor([codes + 1]))
        self.register_buffer("mask_token", torch.tensor([codes]))
        self.set_conditioning(conditioner, p_uncond, use_neighbours, neighbours_key)
        self.grid_tokens = self.conditioner.grid_tokens(self.transformer.context_dim)
        self.p_mask_max, self.first_stage_key, self.codes_key = p_mask_max, first_stage_key, codes_key
        self.monitor, self.scheduler_config, self.seed = monitor, scheduler_config, seed
        self.learning_rate, self.weight_decay, self.betas = learning_rate, weight_decay, betas
        self.first_stage_tile = first_stage_tile
        self._codes_checked = False
        if ckpt_path:
            self.init_from_checkpoint(ckpt_path, ignore_keys)

    def init_from_checkpoint(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        """Loads weights, except those whose names begin with one of the keys.

        The weights of a model of pooled vectors are a possible start for a model with grids of tokens.
        """
        ignored = tuple(ignore_keys)
        state = {name: value for name, value in read_weights(path).items() if not name.startswith(ignored)}
        state = with_grid_weights(state, "grid_tokens.", self.grid_tokens)
        load_weights(self, state, source=path, allow=[*self.optional_names, *(f"{name}*" for name in ignored)])

    @property
    def latent_channels(self) -> int:
        """Channels C of a latent."""
        return int(self.first_stage_model.quantize.e_dim)

    def latent_shape_of(self, height: int, width: int, trained: tuple[int, int]) -> tuple[int, int, int]:
        """Returns the shape ``(C, h, w)`` of the latents of images with a size in pixels, which is that of training.

        Raises:
            ValueError: another size.
        """
        if (height, width) != trained:
            raise ValueError(f"got images of {(height, width)} pixels, expected {trained}, the size of training images")
        factor = self.first_stage_model.downsampling
        return self.latent_channels, height // factor, width // factor

    def setup(self, stage: str) -> None:  # noqa: ARG002 (Lightning's signature)
        """Checks before training that the pictures fit the first stage; raises ValueError if they do not."""
        first, remedy = self.first_stage_model, "give the model another first stage"
        multiple = first.downsampling
        check_training_data(self.trainer, self.first_stage_key, first.in_channels, remedy, multiple=multiple)

    def usual_options(self, sampler: str | None) -> dict[str, Any]:  # noqa: ARG002 (it has no sampler)
        """Returns the usual values of sampling options that may be left out.

        The network reads all its weights for one code of each image: on a CPU, four images cost little more than one.
        """
        return {"scale": USUAL_SCALE, "batch_size": 4 if self.device.type == "cpu" else 8}

    def compiled_networks(self) -> list[nn.Module]:
        """Returns the networks that may be compiled for sampling: the transformer, whose sequence grows, is not."""
        return [self.first_stage_model.decoder]

    def train(self, mode: bool = True) -> RetrievalAugmentedTransformer:
        """Sets the mode of all parts except the first stage, which stays in evaluation mode."""
        super().train(mode)
        self.first_stage_model.eval()
        return self

    @torch.no_grad()
    def to_codes(self, image: Tensor) -> Tensor:
        """Returns the codes ``[B, T] int64`` of images, in full precision."""
        with torch.autocast(image.device.type, enabled=False):
            latent = encode_tiled(self.first_stage_model, image, self.first_stage_tile)
            return self.first_stage_model.nearest_codes(latent)[2].view(len(image), -1)

    @torch.no_grad()
    def to_image(self, codes: Tensor, size: Sequence[int]) -> Tensor:
        """Returns the images ``[B, 3, H, W]`` of codes ``[B, h w]``; ``size`` is ``(h, w)``."""
        h, w = size
        codebook = self.first_stage_model.quantize
        latent = codebook.get_codebook_entry(codes.flatten(), (len(codes), h, w, codebook.e_dim))
        return decode_tiled(self.first_stage_model, latent, self.first_stage_tile)

    def batch_codes(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the codes ``[B, T] int64`` of a batch, computed from the images if the batch holds none."""
        return batch[self.codes_key].long() if self.codes_key in batch else self.to_codes(batch[self.first_stage_key])

    def forward(self, codes: Tensor, context: Tensor) -> Tensor:
        """Returns logits ``[B, T, V]`` for codes ``[B, T]``: those of each code given the codes before it."""
        return self.transformer(torch.cat([self.start(len(codes)), codes[:, :-1]], dim=1), context)

    def start(self, batch: int) -> Tensor:
        """Returns the start token of every sequence, ``[B, 1] int64``."""
        return self.sos_token.expand(batch, 1)

    def loss(self, codes: Tensor, context: Tensor) -> Tensor:
        """Returns the mean negative log-likelihood of a code, ``[]``, in nats."""
        return F.cross_entropy(self(codes, context).flatten(0, 1).float(), codes.flatten())

    def mask_context(self, context: Tensor, generator: torch.Generator) -> Tensor:
        """Returns the context with some of its numbers masked, as ``p_mask_max`` describes."""
        if not self.p_mask_max:
            return context
        share = self.p_mask_max * torch.rand((), generator=generator)
        masked = rand(context.shape, generator) < share
        return torch.where(masked.to(context.device), self.mask_token.to(context), context)

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        """Checks on the first batch that its stored codes are those of this first stage.

        Raises:
            ValueError: more than a few codes differ.
        """
        if self._codes_checked or self.codes_key not in batch:
            return
        agreeing = float((self.to_codes(batch[self.first_stage_key]) == batch[self.codes_key]).float().mean())
        if agreeing < AGREE:
            raise ValueError(
                f"{agreeing:.0%} of the batch's codes are those that this model's first stage gives, expected nearly "
                "all; give model and data.params.codes the same first_stage_config"
            )
        self._codes_checked = True

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Returns the mean loss of a batch."""
        generator = seeded_generator(self.seed, 0, self.global_step, batch_idx, 0)
        context = self.drop_context(self.mask_context(self.context(batch), generator), generator)
        # Dropout draws from torch's global generator, which no checkpoint holds.
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)) + rank())
        loss = self.loss(self.batch_codes(batch), context)
        self.log("train/loss", mean(loss), prog_bar=True)
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        """Logs the loss on held-out images, in nats and in bits, for each code."""
        codes = self.batch_codes(batch)
        loss = self.loss(codes, self.context(batch))
        values = {"val/loss": loss, "val/bits_per_token": loss / math.log(2)}
        self.log_dict(values, prog_bar=True, batch_size=counted(len(codes)), sync_dist=True)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Logs the figures of validation on the test set."""
        self.validation_step(batch, batch_idx)

    def predictor(
        self, context: Tensor, length: int, null: Tensor | None = None, scale: float = 1.0, **guidance: Any
    ) -> Predictor:
        """Returns a predictor that holds the conditioning, for one sampling run.

        The context is projected once, here, and the keys and values of earlier tokens are cached. Guidance is that of
        :func:`ldm.models.diffusion.guidance.guide`, applied to logits: null + scale * (logits - null).

        Args:
            context: ``[B, L, D]``.
            length: number of tokens in a sequence, including the start token.
            null: the null context, which guidance needs.
            scale: of guidance; 1 for none.
            guidance: ``parts`` of that function.
        """
        past = Past(length)

        def see(tokens: Tensor, places: Tensor, seen: Any) -> Tensor:  # noqa: ARG001 (a denoiser's time)
            return self.transformer(tokens, seen, past)[:, -1].float()

        guided = guide(see, context, null, scale, project=self.transformer.project_context, **guidance)
        return lambda tokens: guided(tokens, tokens[:, 0])

    @torch.no_grad()
    def sample_codes(
        self,
        context: Tensor,
        length: int,
        seeds: Sequence[int],
        *,
        begin: Tensor | None = None,
        scale: float = 1.0,
        null: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        on_token: OnToken | None = None,
        **guidance: Any,
    ) -> Tensor:
        """Returns codes ``[B, length] int64``, where image i depends on ``seeds[i]`` and ``context[i]`` alone.

        Args:
            context: ``[B, L, D]``.
            length: number of codes in an image.
            seeds: one for each image.
            begin: the first codes of the images, ``[B, n]`` with n below the length; the rest is sampled.
            scale: of guidance; 1 for none.
            null: the null context, which guidance needs.
            temperature: see :func:`~rdm.models.autoregression.sampling.choose`.
            top_k: see there.
            top_p: see there.
            on_token: observer, called after each code.
            guidance: see :meth:`predictor`.

        Raises:
            ValueError: the number of seeds is not that of the images, or an option of ``choose`` is out of range.
        """
        if len(context) != len(seeds):
            raise ValueError(f"got {len(seeds)} seeds for {len(context)} contexts, expected one each")
        check_choice(temperature, top_k, top_p)
        begin = context.new_empty(len(context), 0, dtype=torch.int64) if begin is None else begin
        predict = self.predictor(context, length, null, scale, **guidance)
        first, missing = torch.cat([self.start(len(context)), begin], dim=1), length - begin.shape[1]
        choice: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        found = autoregress(predict, first, missing, seeded_gumbel(seeds), on_token=on_token, **choice)
        return torch.cat([begin, found], dim=1)

    @torch.no_grad()
    def sample(
        self,
        context: Tensor,
        latent_shape: Sequence[int],
        seeds: Sequence[int],
        watch: Watch | None = None,
        **options: Any,
    ) -> Tensor:
        """Returns images ``[B, 3, H, W]`` in [-1, 1], where image i depends on ``seeds[i]`` and ``context[i]`` alone.

        Args:
            context: ``[B, L, D]``.
            latent_shape: ``(C, h, w)``.
            seeds: one for each image.
            watch: told of every code.
            options: those of :meth:`sample_codes`.
        """
        size = tuple(latent_shape[1:])
        on_token = watched(watch, partial(self.to_image, size=size), size)
        return self.to_image(self.sample_codes(context, math.prod(size), seeds, on_token=on_token, **options), size)

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns columns of a grid: images, reconstructions and samples."""
        images, codes, context = batch[self.first_stage_key], self.batch_codes(batch), self.context(batch)
        size = [side // self.first_stage_model.downsampling for side in images.shape[2:]]
        samples = self.sample(context, (0, *size), range(len(images)))
        return {"inputs": images, "reconstructions": self.to_image(codes, size), "samples": samples}

    def configure_optimizers(self) -> Any:
        """Returns AdamW, with the configured factor by step; matrices have weight decay."""
        groups = decay_groups([self.transformer, self.grid_tokens], self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=True)
        # A fused step could unscale the gradients itself; Lightning then refuses to clip them, which comes before.
        optimizer._step_supports_amp_scaling = False
        if self.scheduler_config is None:
            return {"optimizer": optimizer}
        schedule = StepSchedule(optimizer, instantiate_from_config(self.scheduler_config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class LatentImageRETRO(RetrievalAugmentedTransformer):
    """CompVis' name for the model and its arguments, see ``rdm.compat.autoregression_arguments``.

    ``retrieval_cfg`` and ``nn_memory`` are ignored, because the retriever is no part of the model. ``options`` are
    those of :class:`RetrievalAugmentedTransformer`.
    """

    def __init__(
        self,
        nn_encoder_cfg: Mapping[str, Any],
        nn_key: str,
        mask_token: int,
        p_mask_max: float = 0.0,
        nn_reshaper_cfg: Mapping[str, Any] | None = None,
        nn_memory: str | None = None,
        retrieval_cfg: Mapping[str, Any] | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        cond_stage_config: Mapping[str, Any] | str | None = None,
        permuter_config: Mapping[str, Any] | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        cond_stage_key: str = "depth",  # noqa: ARG002 (CompVis' signature, as the next)
        downsample_cond_size: int = -1,  # noqa: ARG002
        pkeep: float = 1.0,
        sos_token: int = 0,
        unconditional: bool = False,  # noqa: ARG002
        **options: Any,
    ) -> None:
        compat.say_where_neighbours_come_from(retrieval_cfg=retrieval_cfg, nn_memory=nn_memory)
        ours = compat.autoregression_arguments(
            nn_key, nn_encoder_cfg, nn_reshaper_cfg, cond_stage_config, permuter_config, pkeep
        )
        options = {"p_uncond": 0.0, **ours, **options}
        super().__init__(p_mask_max=p_mask_max, scheduler_config=scheduler_config, **options)
        for token, number in ((self.sos_token, sos_token), (self.mask_token, mask_token)):
            if not 0 <= number < self.transformer.in_channels:
                raise ValueError(f"got token {number}, expected one of {self.transformer.in_channels}, the in_channels")
            token.fill_(number)
        if ckpt_path:
            self.init_from_checkpoint(ckpt_path, ignore_keys)

    def context(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the context ``[B, K, D]`` of neighbours ``[B, K, D]`` or ``[B, patches, K / patches, D]``."""
        if self.neighbours_key not in batch:
            return super().context(batch)  # raises the error
        context = self.conditioner(compat.flat_neighbours(batch[self.neighbours_key]).float())
        return context if self.use_neighbours else self.null_context(context)
