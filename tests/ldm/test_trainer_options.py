"""Options and errors of Lightning: what cannot work here is refused, and only Lightning's own errors change."""

from __future__ import annotations

import pytest
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import EarlyStopping

from ldm.trainer_options import check_trainer_options, errors_in_words


@pytest.mark.parametrize("precision", [None, 32, "32-true", "bf16-mixed", "16-mixed", "auto"])
def test_precisions_with_weights_in_float32_are_accepted(precision: object) -> None:
    check_trainer_options({"precision": precision, "overfit_batches": 0.0, "max_steps": 3})


@pytest.mark.parametrize("precision", [64, "64-true", "16-true", "bf16-true", "transformer-engine"])
def test_other_precisions_are_refused(precision: object) -> None:
    with pytest.raises(ValueError, match=f"precision: got {precision}.*bf16-mixed"):
        check_trainer_options({"precision": precision})


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_2"])
def test_strategies_that_split_weights_are_refused(strategy: str) -> None:
    with pytest.raises(ValueError, match=f"strategy: got {strategy}, expected auto or ddp.*accumulate_grad_batches"):
        check_trainer_options({"strategy": strategy})
    check_trainer_options({"strategy": "ddp_find_unused_parameters_true"})


def test_errors_that_lightning_raises_are_told_in_one_line() -> None:
    with pytest.raises(ValueError, match="metric `a` which is not available.*strict: false") as told, errors_in_words():
        EarlyStopping("a")._validate_condition_metric({})
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="lightning: no such thing; correct it"), errors_in_words():
        raise MisconfigurationException("no such\nthing!")


@pytest.mark.parametrize("kind", [RuntimeError, TypeError])
def test_errors_of_others_are_left_as_they_are(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="^ours$"), errors_in_words():
        raise kind("ours")
