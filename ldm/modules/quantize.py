"""The codebook of a VQ first stage: taming's quantiser, other ways to learn its codes, and what keeps them in use.

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

LOG = logging.getLogger(__name__)
KINDS = ("plain", "ema", "cosine", "simvq")


class Codebook(VectorQuantizer2):
    """Nearest codes of latents; only ``plain`` has the names and numbers of CompVis' checkpoints.

    ========== ===================================================================================================
    ``plain``  codes follow the gradient of the codebook loss (van den Oord et al. 2017, eq. 3)
    ``ema``    codes are running means of the latents that chose them (the same, appendix A.1); no gradient
    ``cosine`` latents and codes have unit length, so the nearest code is that of the smallest angle (ViT-VQGAN,
               Yu et al. 2021, section 3.2)
    ``simvq``  frozen random codes and one learned linear map of all of them, so that every step moves every code
               (SimVQ, Zhu et al. 2024)
    ========== ===================================================================================================

    Args:
        n_e: number of codes n.
        e_dim: width C of a code.
        beta: weight of the term that pulls codes towards latents, as in CompVis' models; that in the other direction
            has weight 1.
        remap: ``.npy`` file of the codes that are in use; code numbers count these.
        sane_index_shape: give code numbers as ``[B, h, w]`` instead of ``[B h w]``.
        kind: see above.
        decay: of the running means of ``ema``.
        restart_every: training batches after which the codes that none of them chose restart at latents of the next
            batch (Jukebox, Dhariwal et al. 2020, section 3.2); 0 for never.

    Raises:
        ValueError: an unknown kind, or codes that are to be learned while ``remap`` hides some of them.
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
        if kind not in KINDS:
            raise ValueError(f"codebook.kind: got '{kind}', expected {', '.join(KINDS)}")
        if remap is not None and (kind == "ema" or restart_every):
            raise ValueError("remap: got it for codes that are still to be learned; leave out codebook or remap")
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
        def keep(tensor: Tensor) -> Tensor:  # of a model in half precision, codes stay in full
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype.itemsize < tensor.dtype.itemsize else moved

        super()._apply(keep, recurse)
        return self

    def forward(self, latent: Tensor, *_: Any) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Returns the quantised latent ``[B, C, h, w]``, the codebook loss ``[]`` and, third of three, code numbers."""
        if self.kind == "cosine":
            latent = F.normalize(latent, dim=1)
        with parametrize.cached():
            quantized, loss, found = super().forward(latent)
        if self.kind == "ema" and self.training:
            self._follow(latent.detach().movedim(1, -1).flatten(0, 2), found[2].flatten())
        return quantized, loss, found

    @torch.no_grad()
    def _follow(self, latents: Tensor, indices: Tensor) -> None:
        """Moves the running means towards the latents ``[N, C]`` that chose them; counts are smoothed as in A.1."""
        counts = summed(torch.bincount(indices, minlength=self.n_e).float())
        totals = summed(torch.zeros_like(self.total).index_add_(0, indices, latents))
        self.count.lerp_(counts, 1 - self.decay)
        self.total.lerp_(totals, 1 - self.decay)
        all_counts, small = self.count.sum(), 1e-5
        smooth = (self.count + small) / (all_counts + self.n_e * small) * all_counts
        self.embedding.weight.copy_(self.total / smooth[:, None])

    @torch.no_grad()
    def write(self, codes: Tensor, rows: Tensor | slice = slice(None)) -> None:
        """Overwrites the codes of some rows, on every device with those of the first.

        Args:
            codes: ``[N, C]``.
            rows: ``[N] int64``; all by default.
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
        """The rows ``[n, C]`` that the codes are made of."""
        learned: Any = getattr(self.embedding, "parametrizations", None)
        return self.embedding.weight if learned is None else learned.weight.original

    def restart(self, latents: Tensor, unused: Tensor, generator: torch.Generator) -> None:
        """Restarts codes at random latents.

        Args:
            latents: ``[N, C]``.
            unused: ``[n] bool``, the codes to restart.
            generator: draws the latents, on the CPU.
        """
        rows = unused.nonzero().flatten().to(latents.device)
        if len(rows):
            self.write(latents[torch.randint(len(latents), (len(rows),), generator=generator).to(latents.device)], rows)
            LOG.info("%d of %d codes were not in use and restart", len(rows), self.n_e)

    @torch.no_grad()
    def cluster(self, latents: Tensor, rounds: int = 20) -> None:
        """Sets the codes to the means of a k-means clustering.

        Args:
            latents: ``[N, C]`` with N at least the number of codes.
            rounds: of Lloyd's algorithm; an empty cluster restarts at a random latent.

        Raises:
            ValueError: fewer latents than codes.
        """
        generator, size = torch.Generator().manual_seed(0), self.n_e
        if len(latents) < size:
            raise ValueError(
                f"got {len(latents)} latents to make {size} codes from; use a larger batch or more warm_up_steps"
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
        """Returns rows ``[n, C]`` that become the codes: they do not change."""
        return codes


class LinearMap(nn.Linear):
    """A linear map of the rows of ``[n, C]`` that can be undone."""

    def right_inverse(self, codes: Tensor) -> Tensor:
        """Returns the rows ``[n, C]`` that become the codes."""
        return codes @ torch.linalg.pinv(self.weight).T if codes.device.type != "meta" else codes


class CodeUsage:
    """How often each code was chosen, over batches and devices.

    Args:
        size: number of codes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.reset()

    def reset(self) -> None:
        """Forgets all batches."""
        self.counts, self.batches = torch.zeros(self.size, dtype=torch.int64, device="cpu"), 0

    def add(self, indices: Tensor) -> None:
        """Counts the code numbers of a batch, of any shape."""
        new = torch.bincount(indices.flatten(), minlength=self.size)
        self.counts, self.batches = self.counts.to(new.device) + new, self.batches + 1

    def unused(self) -> Tensor:
        """Returns ``[n] bool``: the codes that no device chose."""
        return summed(self.counts.clone()) == 0

    def figures(self) -> dict[str, Tensor]:
        """Returns ``code_usage``, the share of codes in use, and their :func:`perplexity`, both ``[]``."""
        counts = summed(self.counts.clone())
        return {"code_usage": (counts > 0).float().mean(), "perplexity": perplexity(counts)}

    def state_dict(self) -> dict[str, Any]:
        """Returns counts and number of batches."""
        return {"counts": self.counts.cpu(), "batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them back."""
        self.counts, self.batches = state["counts"], state["batches"]


def perplexity(counts: Tensor) -> Tensor:
    """Returns the number ``[]`` of equally frequent codes that would be as hard to guess as those of ``counts [n]``."""
    share = counts.float() / counts.sum().clamp(min=1)
    return torch.special.entr(share).sum().exp()


def summed(tensor: Tensor) -> Tensor:
    """Returns the sum over all devices, written in place."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor
