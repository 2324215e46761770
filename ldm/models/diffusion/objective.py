"""The training loss of a diffusion model: the error of its prediction, and terms with weights for each time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

LOSS_TYPES = ("l1", "l2")


@dataclass(frozen=True)
class Objective:
    """The loss of Ho et al. 2020, equation 14, with CompVis' options.

    Attributes:
        loss_type: ``l2``, the squared error, or ``l1``, the absolute one.
        simple_weight: weight of the error under the learned or given variance.
        elbo_weight: weight of the error with the weights of the variational bound.

    Raises:
        ValueError: an unknown loss type.
    """

    loss_type: str = "l2"
    simple_weight: float = 1.0
    elbo_weight: float = 0.0

    def __post_init__(self) -> None:
        """Checks the loss type."""
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(f"loss_type: got '{self.loss_type}', expected l1 or l2")

    def __call__(
        self,
        output: Tensor,
        target: Tensor,
        logvar: Tensor,
        elbo_weights: Tensor | None = None,
        time_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Returns the terms of every sample's loss, each ``[B]`` float32; training minimises ``loss``.

        Args:
            output: the model's prediction ``[B, C, h, w]``.
            target: the target of the prediction ``[B, C, h, w]``.
            logvar: logarithm of the error's expected size at each sample's time ``[B]``.
            elbo_weights: weights of the variational bound at each sample's time ``[B]``.
            time_weights: weights of the error in ``loss`` at each sample's time ``[B]``; by default 1.

        Raises:
            ValueError: the prediction has another shape than the target.
        """
        if output.shape != target.shape:
            raise ValueError(
                f"the network's output has shape {list(output.shape)}, expected {list(target.shape)}; "
                "correct out_channels in unet_config"
            )
        error = output.float() - target
        simple = (error.abs() if self.loss_type == "l1" else error.square()).mean((1, 2, 3))
        weighted = simple if time_weights is None else time_weights * simple
        gamma = weighted / logvar.exp() + logvar
        terms = {"loss": self.simple_weight * gamma, "loss_simple": simple}
        if logvar.requires_grad:
            terms["loss_gamma"] = gamma
        if elbo_weights is not None:
            terms["loss_vlb"] = elbo_weights * simple
        if elbo_weights is not None and self.elbo_weight:
            terms["loss"] = terms["loss"] + self.elbo_weight * terms["loss_vlb"]
        return terms
