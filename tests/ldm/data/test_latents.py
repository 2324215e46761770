"""Latents of a training set that are computed once, before any step."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from small_models import randomise
from toy import plain_config, rdm_config

from ldm import table
from ldm.data import picture_table
from ldm.data.latents import LatentSource
from ldm.util import instantiate_from_config


def with_table(config: dict[str, Any], folder: Path, table: bool = True) -> dict[str, Any]:
    """The config with cached latents, in a table or in memory."""
    model = config["model"]["params"]
    model |= {"cache_latents": True, "scale_factor": 0.5}
    if table:
        config["data"]["params"]["latents"] = {
            "path": str(folder / "latents"),
            "first_stage": model["first_stage_config"],
        }
    return config


class Losses(pl.Callback):
    """Keeps the losses of a training, and which pictures its first stage encoded."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, *given: Any) -> None:
        self.seen.append(float(given[2]["loss"]))


def fit(config: dict[str, Any], encodes: bool) -> list[float]:
    """The losses of six steps; the first stage must not encode if it need not."""
    model, losses = instantiate_from_config(config["model"]), Losses()
    if not encodes:
        model.first_stage_model.encode = None
    pl.Trainer(
        max_steps=6,
        logger=False,
        callbacks=[losses],
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    ).fit(model, datamodule=instantiate_from_config(config["data"]))
    return losses.seen


@pytest.mark.parametrize("kind", [plain_config, rdm_config])
def test_a_training_on_a_table_has_the_losses_of_one_that_encodes(kind: Any, tmp_path: Path) -> None:
    in_memory = fit(with_table(kind(tmp_path), tmp_path, table=False), encodes=True)
    assert len(in_memory) == 6
    assert fit(with_table(kind(tmp_path), tmp_path), encodes=False) == pytest.approx(in_memory, abs=2e-3)


def test_a_table_that_was_half_made_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_table(plain_config(tmp_path), tmp_path)["data"]["params"]
    images = instantiate_from_config(config["train"])
    whole = LatentSource(config["latents"]).prepare(images, progress=False)
    assert whole.values.shape == (12, 3, 8, 8) and whole.values.dtype == np.float16
    monkeypatch.setattr(picture_table, "BATCH", 4)
    made = []

    def until_the_power_fails(stage: Any, pictures: torch.Tensor) -> torch.Tensor:
        made.append(len(pictures))
        if len(made) == 2:
            raise KeyboardInterrupt
        return encode(stage, pictures)

    from ldm.data import latents

    encode = latents.encode
    monkeypatch.setattr(latents, "encode", until_the_power_fails)
    source = LatentSource({**config["latents"], "path": str(tmp_path / "parts")})
    with pytest.raises(KeyboardInterrupt):
        source.prepare(images, progress=False)
    with pytest.raises(FileNotFoundError, match=r"no latents at .*main\.py"):
        source.added_to(images)
    parts = source.prepare(images, progress=False)
    assert made == [4, 4, 4, 4] and np.array_equal(parts.values, whole.values)
    assert json.loads((tmp_path / "parts/latents.json").read_text()) == whole.card


def test_a_full_disk_is_said_before_the_first_latent_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_table(plain_config(tmp_path), tmp_path)["data"]["params"]
    monkeypatch.setattr(table.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(
        ValueError, match=r"latents need 0\.0 MB .* free; name another path in data.params.latents.path"
    ):
        LatentSource(config["latents"]).prepare(instantiate_from_config(config["train"]), progress=False)
    assert not list(tmp_path.glob("latents/*.npy"))


def test_latents_of_another_first_stage_or_for_another_model_are_refused(tmp_path: Path) -> None:
    config = with_table(plain_config(tmp_path), tmp_path)
    data = instantiate_from_config(config["data"])
    data.latents.prepare(instantiate_from_config(config["data"]["params"]["train"]), progress=False)
    model = instantiate_from_config(config["model"])
    data.latents.check(model)
    randomise(model.first_stage_model, 1)
    with pytest.raises(ValueError, match=r"latents.first_stage has the weights \w+, expected those of the model's"):
        data.latents.check(model)
    config["model"]["params"]["cache_latents"] = False
    with pytest.raises(ValueError, match=r"expected model.params.cache_latents=true"):
        data.latents.check(instantiate_from_config(config["model"]))


@pytest.mark.parametrize(("section", "message"), [({"path": "a"}, "'first_stage'"), ({"pathh": "a"}, "pathh")])
def test_wrong_sections_are_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"latents.*{message}"):
        LatentSource(section)


def test_a_stream_has_no_table(tmp_path: Path) -> None:
    source = LatentSource({"path": str(tmp_path), "first_stage": {}})
    with pytest.raises(ValueError, match="data.params.latents: got a stream of far, expected pictures in any order"):
        source.prepare(SimpleNamespace(streams=True, name="far"))
