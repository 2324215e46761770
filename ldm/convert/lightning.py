"""The section ``lightning`` of CompVis' training configs, in our terms. This module imports nothing slow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ldm.util import check_mapping, nearest

LOG = logging.getLogger(__name__)
# Keys of the section that have no place here, and what takes their place.
ELSEWHERE = {
    "strategy": "give lightning.trainer.strategy, such as ddp",
    "find_unused_parameters": "give lightning.trainer.strategy: ddp_find_unused_parameters_true",
}
# Arguments of earlier versions of Lightning's Trainer, and their present names.
RENAMED = {
    "distributed_backend": "strategy",
    "replace_sampler_ddp": "use_distributed_sampler",
    "checkpoint_callback": "enable_checkpointing",
}
# Arguments of such versions that do nothing which is not done anyway.
NEEDLESS = (
    "terminate_on_nan", "flush_logs_every_n_steps", "log_gpu_memory", "amp_backend", "amp_level", "weights_summary",
    "progress_bar_refresh_rate", "prepare_data_per_node", "auto_select_gpus",
)  # fmt: skip
STRATEGIES = ("dp", "ddp", "ddp2", "ddp_spawn", "ddp_cpu")
# Arguments of a checkpoint callback that this code sets itself.
OWN_NAMES = ("dirpath", "filename", "save_top_k")
# Our loggers by their short names, CompVis' short names among them; the file metrics.csv is always written.
CSV = ""
LOGGERS = {
    "tensorboard": "ldm.loggers.TensorBoard",
    "testtube": "ldm.loggers.TensorBoard",
    "wandb": "ldm.loggers.WeightsAndBiases",
    "csv": CSV,
}
# Loggers of Lightning, of which the third is gone, and the short names of ours that take their place.
IN_PLACE_OF = {
    "TensorBoardLogger": "tensorboard",
    "TestTubeLogger": "testtube",
    "WandbLogger": "wandb",
    "CSVLogger": "csv",
}
# Arguments of these loggers that say where they write or do nothing here.
NOT_TAKEN = {
    "tensorboard": (
        "save_dir", "root_dir", "name", "version", "sub_dir", "log_graph", "default_hp_metric", "description", "debug",
        "create_git_tag",
    ),
    "wandb": ("save_dir", "dir", "anonymous", "checkpoint_name"),
}  # fmt: skip


def our_lightning(section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section with ``modelcheckpoint`` as ``checkpoint``, and the trainer's arguments under present names.

    The ``logger`` becomes a list with ``target`` and ``params`` of each logger beside that of ``metrics.csv``.

    Raises:
        ValueError: a key has no place here; the message says what takes its place.
    """
    found = dict(section)
    for key, instead in ELSEWHERE.items():
        if key in found:
            raise ValueError(f"lightning.{key} has no place here; {instead}")
    if "modelcheckpoint" in found:
        theirs = found.pop("modelcheckpoint")
        check_mapping(theirs, "lightning.modelcheckpoint")
        check_mapping(found.get("checkpoint"), "lightning.checkpoint")
        params = (theirs or {}).get("params")
        check_mapping(params, "lightning.modelcheckpoint.params")
        found["checkpoint"] = {**_checkpoint(params or {}), **(found.get("checkpoint") or {})}
    if "logger" in found:
        given = found["logger"] if isinstance(found["logger"], list) else [found["logger"] or "csv"]
        found["logger"] = [config for each in given if (config := _logger(each))["target"] != CSV]
    if isinstance(found.get("trainer"), Mapping):
        found["trainer"] = _trainer(found["trainer"])
    return found


def _logger(given: Any) -> dict[str, Any]:
    """Returns ``target`` and ``params`` of a logger that is given by a short name, or in CompVis' form."""
    config: Any = {"target": given} if isinstance(given, str) else given
    if not isinstance(config, Mapping) or not isinstance(config.get("target", ""), str):
        raise ValueError(
            f"lightning.logger: got {given!r}, expected tensorboard, wandb, or a mapping with target and params"
        )
    target: str = config.get("target", "testtube")  # which is what CompVis' code takes without a target
    package, _, name = target.rpartition(".")
    short = IN_PLACE_OF.get(name, target) if package.startswith("pytorch_lightning.loggers") else target
    if short not in LOGGERS:
        if "." not in short:
            raise ValueError(f"lightning.logger: got '{short}', expected {', '.join(LOGGERS)}{nearest(short, LOGGERS)}")
        return dict(config)
    check_mapping(config.get("params"), "lightning.logger.params")
    params = dict(config.get("params") or {})
    if short == "wandb" and "version" in params:
        params["id"] = params.pop("version")
    taken = {k: v for k, v in params.items() if k not in NOT_TAKEN["wandb" if short == "wandb" else "tensorboard"]}
    if left := [key for key in params if key not in taken and short != "csv"]:
        LOG.warning("lightning.logger: %s of %s has no effect; it writes into the run folder", ", ".join(left), target)
    return {**config, "target": LOGGERS[short], "params": taken}


def _checkpoint(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of CompVis' checkpoint callback that our checkpoints take."""
    given = {"every_n_epochs" if name == "period" else name: value for name, value in params.items()}
    if left := [name for name in OWN_NAMES if name in given]:
        LOG.warning(
            "lightning.modelcheckpoint: %s has no effect; checkpoints/ of the run folder has last.ckpt and, with a "
            "monitor, best.ckpt",
            ", ".join(left),
        )
    return {name: value for name, value in given.items() if name not in OWN_NAMES}


def _trainer(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of the Trainer of an earlier Lightning under their present names."""
    found = {RENAMED.get(name, name): value for name, value in options.items()}
    if left := [name for name in NEEDLESS if name in found]:
        LOG.warning("lightning.trainer: %s has no effect and is left out", ", ".join(left))
    found = {name: value for name, value in found.items() if name not in NEEDLESS}
    if "resume_from_checkpoint" in found:
        raise ValueError("lightning.trainer.resume_from_checkpoint has no place here; give --resume RUN")
    if found.get("accelerator") in STRATEGIES:
        found["strategy"] = found.pop("accelerator")
    if (gpus := found.pop("gpus", None)) not in (None, 0, "", [], "0"):
        numbers = [int(part) for part in gpus.strip(",").split(",")] if isinstance(gpus, str) and "," in gpus else gpus
        found |= {"accelerator": "gpu", "devices": numbers}
    return found
