"""Options of Lightning's trainer that cannot work with the models of this project, and its errors in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

LIGHTNING = ("pytorch_lightning", "lightning_fabric")
SHARDED = ("fsdp", "deepspeed", "model_parallel")  # strategies that split weights
PRECISIONS = ("auto", "32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed")


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Checks the options of a trainer for those that cannot work here; Lightning checks the others.

    Raises:
        ValueError: an option cannot work.
    """
    precision = options.get("precision")
    if precision is not None and str(precision) not in PRECISIONS:
        raise ValueError(
            f"lightning.trainer.precision: got {precision}, expected {', '.join(PRECISIONS)}: weights and their "
            "average are kept in float32; give bf16-mixed or 16-mixed to compute in fewer bits"
        )
    strategy = str(options.get("strategy", "auto"))
    if strategy.startswith(SHARDED):
        raise ValueError(
            f"lightning.trainer.strategy: got {strategy}, expected auto or ddp: running averages, two optimisers and "
            "whole checkpoints need all weights in every process; for a model that does not fit, give "
            "lightning.trainer.precision=bf16-mixed and a smaller data.params.batch_size with "
            "lightning.trainer.accumulate_grad_batches"
        )
    if options.get("overfit_batches"):
        raise ValueError(
            f"lightning.trainer.overfit_batches: got {options['overfit_batches']}, expected it left out, as it "
            "replaces the data loaders, which keep the order of the pictures; give "
            "lightning.trainer.limit_train_batches and data.params.shuffle=false instead"
        )


@contextlib.contextmanager
def errors_in_words() -> Iterator[None]:
    """Turns errors that Lightning itself raises about a config into errors of one line.

    Raises:
        ValueError: Lightning cannot work with an option or a callback.
    """
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except (MisconfigurationException, RuntimeError, TypeError) as error:
        if not isinstance(error, MisconfigurationException) and not _is_of_lightning(error):
            raise
        text = " ".join(str(error).split()).rstrip(".!")
        remedy = "correct it under lightning.callbacks or lightning.trainer, or leave it out"
        if text.startswith("Early stopping conditioned on metric"):
            remedy = "correct monitor, or set strict: false in its params if the figure comes later"
        raise ValueError(f"lightning: {text}; {remedy}") from error


def _is_of_lightning(error: BaseException) -> bool:
    """Returns whether an error was raised in a module of Lightning, and not in what it calls."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and str(place.tb_frame.f_globals.get("__name__")).split(".")[0] in LIGHTNING
