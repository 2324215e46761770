"""The codebook of VQ first stages: taming's quantiser, other ways to learn codes, and restarts of unused codes.

Latents are ``[B, C, h, w] float32``, codes ``[n, C] float32``, code numbers int64.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from taming.modules.vqvae.quantize import VectorQuantizer2
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrize

from ldm.parallel import rank, summed

LOG = logging.getLogger(__name__)
KINDS = ("plain", "ema", "cosine", "simvq")


class Codebook(VectorQuantizer2):
    """Replaces each latent by the nearest code. Only ``plain`` has the weights of CompVis' checkpoints.

    ========== ===================================================================================================
    ``plain``  codes are trained by the gradient of the codebook loss (van den Oord et al. 2017, eq. 3)
    ``ema``    codes are running means of the latents assigned to them, without a gradient (ibid., appendix A.1)
    ``cosine`` latents and codes have unit length, so that the nearest code is the one with the smallest angle
               (ViT-VQGAN, Yu et al. 2021, section 3.2)
    ``simvq``  codes are a learned linear map of frozen random vectors, so that each step changes every code (SimVQ,
               Zhu et al. 2024)
    ========== ===================================================================================================

    Args:
        n_e: number of codes n.
        e_dim: width C of a code.
        beta: weight of the loss that moves codes towards latents, as in CompVis' models; the loss that moves latents
            towards codes has weight 1.
        remap: ``.npy`` file with the numbers of the used codes; returned code numbers are positions in this list.
        sane_index_shape: return code numbers as ``[B, h, w]`` instead of ``[B h w]``.
        kind: how codes are learned, see the table.
        decay: decay of the running means of ``ema``.
        restart_every: number of training batches after which codes that were not used in them restart at latents of
            the next batch (Jukebox, Dhariwal et al. 2020, section 3.2); 0 for never.

    Raises:
        ValueError: an unknown kind, or ``remap`` for a codebook whose codes are learned by ``ema`` or restarted.
    """

    embedding: nn.Embedding
    count: Tensor
    total: Tensor

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float = 0.25,
        remap: str | None = None,
        sane_index_shape: bool = False,
        *,
        kind: str = "plain",
        decay: float = 0.99,
        restart_every: int = 0,
    ) -> None:
        if min(n_e, e_dim) < 1:
            raise ValueError(f"got n_embed={n_e} and embed_dim={e_dim}, expected at least 1 of each")
        if kind not in KINDS:
            raise ValueError(f"codebook.kind: got '{kind}', expected {', '.join(KINDS)}")
        if remap is not None and (kind == "ema" or restart_every):
            raise ValueError("remap: got it with codes that are learned, expected none; leave out codebook or remap")
        super().__init__(n_e, e_dim, beta=beta, remap=remap, sane_index_shape=sane_index_shape)
        self.kind, self.decay, self.restart_every = kind, decay, restart_every
        if kind == "ema":
            self.embedding.requires_grad_(False)
            self.register_buffer("count", torch.ones(n_e))
            self.register_buffer("total", self.embedding.weight.detach().clone())
        elif kind == "cosine":
            nn.init.normal_(self.embedding.weight)
            parametrize.register_parametrization(self.embedding, "weight", UnitLength())
        elif kind == "simvq":
            nn.init.normal_(self.embedding.weight, std=e_dim**-0.5)
            self.embedding.requires_grad_(False)
            parametrize.register_parametrization(self.embedding, "weight", LinearMap(e_dim, e_dim, bias=False))

    def _apply(self, fn: Any, recurse: bool = True) -> Codebook:
        def keep(tensor: Tensor) -> Tensor:  # codes keep their precision if the model is converted to half precision
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype.itemsize < tensor.dtype.itemsize else moved

        super()._apply(keep, recurse)
        return self

    def forward(self, latent: Tensor, *_: Any) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Returns the quantised latent ``[B, C, h, w]``, the codebook loss ``[]``, and (None, None, code numbers)."""
        if self.kind == "cosine":
            latent = F.normalize(latent, dim=1)
        with parametrize.cached():
            quantized, loss, found = super().forward(latent)
        if self.kind == "ema" and self.training:
            self._follow(latent.detach().movedim(1, -1).flatten(0, 2), found[2].flatten())
        return quantized, loss, found

    @torch.no_grad()
    def _follow(self, latents: Tensor, indices: Tensor) -> None:
        """Updates the running means with the latents ``[N, C]`` of each code; counts are smoothed (appendix A.1)."""
        counts = summed(torch.bincount(indices, minlength=self.n_e).float())
        totals = summed(torch.zeros_like(self.total).index_add_(0, indices, latents))
        self.count.lerp_(counts, 1 - self.decay)
        self.total.lerp_(totals, 1 - self.decay)
        all_counts, small = self.count.sum(), 1e-5
        smooth = (self.count + small) / (all_counts + self.n_e * small) * all_counts
        self.embedding.weight.copy_(self.total / smooth[:, None])

    @torch.no_grad()
    def write(self, codes: Tensor, rows: Tensor | slice = slice(None)) -> None:
        """Overwrites codes; with several devices, all of them get the codes of the first.

        Args:
            codes: ``[N, C]``.
            rows: numbers of the codes ``[N] int64``; by default all codes.
        """
        codes = codes.to(self.embedding.weight).contiguous()
        if distributed.is_initialized():
            distributed.broadcast(codes, 0)
        learned: Any = getattr(self.embedding, "parametrizations", None)
        self.stored[rows] = codes if learned is None else learned.weight[0].right_inverse(codes)
        if self.kind == "ema":
            self.count[rows], self.total[rows] = 1.0, codes

    @property
    def stored(self) -> Tensor:
        """The stored parameter ``[n, C]`` from which the codes are computed."""
        learned: Any = getattr(self.embedding, "parametrizations", None)
        return self.embedding.weight if learned is None else learned.weight.original

    def restart(self, latents: Tensor, unused: Tensor, generator: torch.Generator) -> None:
        """Restarts codes at random latents.

        Args:
            latents: ``[N, C]``.
            unused: the codes to restart, ``[n] bool``.
            generator: a CPU generator, which selects the latents.
        """
        rows = unused.nonzero().flatten().to(latents.device)
        if len(rows):
            self.write(latents[torch.randint(len(latents), (len(rows),), generator=generator).to(latents.device)], rows)
            LOG.info("%d of %d codes were not used and have been restarted", len(rows), self.n_e)

    @torch.no_grad()
    def cluster(self, latents: Tensor, rounds: int = 20) -> None:
        """Sets the codes to the means of a k-means clustering.

        Args:
            latents: ``[N, C]``; N must be at least the number of codes.
            rounds: number of iterations of Lloyd's algorithm; an empty cluster restarts at a random latent.

        Raises:
            ValueError: there are fewer latents than codes.
        """
        generator, size = torch.Generator().manual_seed(0), self.n_e
        if len(latents) < size:
            raise ValueError(
                f"got {len(latents)} latents for {size} codes, expected one for each; use a larger batch or more "
                "warm_up_steps"
            )
        latents = latents[torch.randperm(len(latents), generator=generator)[: 100 * size].to(latents.device)].float()
        latents = F.normalize(latents, dim=1) if self.kind == "cosine" else latents
        codes = latents[:size].clone()
        for _ in range(rounds):
            nearest = torch.cat([torch.cdist(part, codes).argmin(1) for part in latents.split(8192)])
            count = torch.bincount(nearest, minlength=size)
            total = torch.zeros_like(codes).index_add_(0, nearest, latents)
            codes = total / count.clamp(min=1)[:, None]
            empty = (count == 0).nonzero().flatten()
            codes[empty] = latents[torch.randint(len(latents), (len(empty),), generator=generator).to(latents.device)]
        self.write(codes)
        LOG.info("set %d codes from %d latents", size, len(latents))


class UnitLength(nn.Module):
    """Scales the rows of ``[n, C]`` to length 1."""

    def forward(self, codes: Tensor) -> Tensor:
        """Returns ``[n, C]``."""
        return F.normalize(codes, dim=1)

    def right_inverse(self, codes: Tensor) -> Tensor:
        """Returns the rows ``[n, C]`` from which :meth:`forward` computes the codes: the codes themselves."""
        return codes


class LinearMap(nn.Linear):
    """An invertible linear map of the rows of ``[n, C]``."""

    def right_inverse(self, codes: Tensor) -> Tensor:
        """Returns the rows ``[n, C]`` from which :meth:`forward` computes the codes."""
        return codes @ torch.linalg.pinv(self.weight).T if codes.device.type != "meta" else codes


class CodeUsage:
    """Counts how often each code is used, over batches and devices.

    Args:
        size: number of codes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.reset()

    def reset(self) -> None:
        """Sets all counts to 0."""
        self.counts, self.batches = torch.zeros(self.size, dtype=torch.int64, device="cpu"), 0

    def add(self, indices: Tensor) -> None:
        """Counts the code numbers of a batch, of any shape."""
        new = torch.bincount(indices.flatten(), minlength=self.size)
        self.counts, self.batches = self.counts.to(new.device) + new, self.batches + 1

    def unused(self) -> Tensor:
        """Returns which codes were used on no device, ``[n] bool``."""
        return summed(self.counts.clone()) == 0

    def figures(self) -> dict[str, Tensor]:
        """Returns ``code_usage``, the fraction of codes that were used, and their :func:`perplexity`, both ``[]``."""
        counts = summed(self.counts.clone())
        return {"code_usage": (counts > 0).float().mean(), "perplexity": perplexity(counts)}

    def relative(self) -> Tensor:
        """Returns how often each code was used, ``[n] float32``, as a multiple of the mean over all codes."""
        counts = summed(self.counts.clone()).float()
        return counts / counts.mean()

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts of all devices and the number of batches. All processes must ask for it."""
        return {"counts": summed(self.counts.clone()).cpu(), "batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the counts, which the first process takes, and the number of batches."""
        self.counts, self.batches = state["counts"] * (rank() == 0), state["batches"]


def perplexity(counts: Tensor) -> Tensor:
    """Returns the perplexity ``[]`` of code frequencies ``counts [n]``: n if all are equal, 1 for a single code."""
    share = counts.float() / counts.sum().clamp(min=1)
    return torch.special.entr(share).sum().exp()
