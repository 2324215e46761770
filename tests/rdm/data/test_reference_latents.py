"""Tables of reference latents: computed once, completed after a kill, made again for another first stage or others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import QUIET, ProjectionEmbedder, write_pictures
from small_models import KL, VQ, randomise
from toy import references_config

from ldm import table
from ldm.models.first_stage import encode
from ldm.util import instantiate_from_config
from rdm.data import row_tables as module
from rdm.data.references import ReferenceTable, prepare_reference_table
from rdm.data.row_tables import RowTable
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.pictures import pictures
from rdm.retrieval.database.rows import RetrievalDatabase

NEIGHBOURS = [np.array([[3, 1], [11, 3]]), np.array([[5], [0]])]
ROWS = [0, 1, 3, 5, 11]


def first_stage(config: dict[str, Any] = VQ, seed: int = 0) -> Any:
    stage = instantiate_from_config(config)
    randomise(stage, seed)
    return stage.eval()


def prepare(path: Path, database: RetrievalDatabase, stage: Any, neighbours: Any = NEIGHBOURS) -> RowTable:
    return prepare_reference_table(path, database, neighbours, stage, 8, progress=False)


@pytest.mark.parametrize("config", [VQ, KL])
def test_the_latents_are_those_of_the_rows_pictures(
    config: dict[str, Any], tmp_path: Path, database: RetrievalDatabase
) -> None:
    stage = first_stage(config)
    table = prepare(tmp_path / "table", database, stage)
    assert table.rows.tolist() == ROWS and len(table) == 5
    wanted = np.array([[11, 0, 3], [1, 1, 5]])
    with torch.no_grad():
        expected = encode(stage, pictures(database, wanted.ravel(), 8)).half()
    assert torch.equal(table.of_rows(wanted), expected.view(2, 3, *expected.shape[1:]))
    with pytest.raises(ValueError, match="no row 2;"):
        table.of_rows(np.array([3, 2]))


def test_a_table_that_was_half_made_is_gone_on_with(
    tmp_path: Path, database: RetrievalDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, made = first_stage(), []
    monkeypatch.setattr(module, "_BATCH", 2)
    whole = prepare(tmp_path / "whole", database, stage)
    plain = stage.encode

    def until_the_power_fails(images: torch.Tensor) -> torch.Tensor:
        made.append(len(images))
        if len(made) == 4:
            raise KeyboardInterrupt
        return plain(images)

    monkeypatch.setattr(stage, "encode", until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "parts", database, stage)
    with pytest.raises(FileNotFoundError, match=r"reference latents at .*parts.*main\.py"):
        ReferenceTable.open(tmp_path / "parts", database)
    made.clear()
    parts = prepare(tmp_path / "parts", database, stage)
    assert made == [1, 1]  # one row tells how large a latent is, and one was left
    assert parts.card == whole.card and np.array_equal(parts.values, whole.values)
    made.clear()
    assert prepare(tmp_path / "parts", database, stage).card == whole.card and made == []


def test_another_first_stage_or_other_rows_or_database_are_told_apart(
    tmp_path: Path, database: RetrievalDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    first = np.array(prepare(tmp_path / "table", database, first_stage()).values)
    again = prepare(tmp_path / "table", database, first_stage(seed=1))
    assert "differ in first_stage" in caplog.text and not np.array_equal(first, again.values)
    assert len(prepare(tmp_path / "table", database, first_stage(seed=1), [np.arange(3)])) == 3
    assert "differ in rows, rows_hash" in caplog.text
    other = build_database(tmp_path / "other", write_pictures(tmp_path / "p", 12, 5), ProjectionEmbedder(), **QUIET)
    with pytest.raises(ValueError, match=f"belong to the database {database.fingerprint}"):
        ReferenceTable.open(tmp_path / "table", other)
    (tmp_path / "table" / "latents.npy").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"latents\.npy.*sha256"):
        ReferenceTable.open(tmp_path / "table", database)


def test_pictures_that_are_gone_and_a_full_disk_are_refused_at_once(
    tmp_path: Path, database: RetrievalDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(ValueError, match=r"reference latents need .* MB .* 0\.0 MB free; name another path"):
        prepare(tmp_path / "table", database, first_stage())
    monkeypatch.undo()
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="cannot be cut out again .*; restore the source"):
        prepare(tmp_path / "table", database, first_stage())


def test_the_data_module_gives_every_image_its_neighbours_latents(tmp_path: Path) -> None:
    config = references_config(tmp_path)
    data, model = instantiate_from_config(config["data"]), instantiate_from_config(config["model"])
    data.prepare_data()
    assert not (tmp_path / "database" / "references").exists()  # sampling needs no table
    data.trainer = SimpleNamespace()
    data.prepare_data()
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        shown = pictures(data.database, batch["neighbour_rows"].numpy(), 16)
        latents = model.to_latent(shown.flatten(0, 1)).view(4, 2, 3, 8, 8)
        torch.testing.assert_close(batch["references"].float(), latents, atol=2e-3, rtol=2e-3)
        assert model.context(batch).image.shape == (4, 7, 8, 8)


def test_wrong_sections_of_references_are_named(tmp_path: Path) -> None:
    for wrong, message in (({"path": "a"}, "'first_stage'"), ({"first_stage": {}, "stage": 1}, "'stage'")):
        data = references_config(tmp_path)["data"]
        data["params"]["references"] = wrong
        with pytest.raises(ValueError, match=f"references.*{message}"):
            instantiate_from_config(data)


def test_rows_that_are_known_are_not_encoded_again(
    tmp_path: Path, database: RetrievalDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, made = first_stage(), []
    prepare(tmp_path / "table", database, stage)
    plain = stage.encode
    monkeypatch.setattr(stage, "encode", lambda images: made.append(len(images)) or plain(images))
    grown = prepare(tmp_path / "table", database, stage, [*NEIGHBOURS, np.array([7, 2])])
    assert made == [1, 2]  # one row tells how large a latent is, and two are new
    monkeypatch.undo()
    whole = prepare(tmp_path / "whole", database, stage, [*NEIGHBOURS, np.array([7, 2])])
    assert np.array_equal(grown.values, whole.values) and grown.card == whole.card


def test_references_of_another_first_stage_than_the_models_are_refused(tmp_path: Path) -> None:
    """Whole weights to start from bring a first stage of their own, which the table of references does not know."""
    config = references_config(tmp_path)
    data, model = instantiate_from_config(config["data"]), instantiate_from_config(config["model"])
    data.trainer = SimpleNamespace(lightning_module=model)
    data.prepare_data()
    data.setup("fit")
    data.train_dataloader()
    randomise(model.first_stage_model, 1)
    with pytest.raises(ValueError, match=r"references.first_stage has the weights \w+, expected .*load_only_unet=true"):
        data.train_dataloader()


@pytest.mark.parametrize("cached", [True, False])
def test_images_that_are_rows_themselves_are_not_encoded_again(cached: bool, tmp_path: Path) -> None:
    config = references_config(tmp_path, cache_latents=cached, scale_factor=0.5)
    data, model = instantiate_from_config(config["data"]), instantiate_from_config(config["model"])
    data.trainer = SimpleNamespace()
    data.prepare_data()
    data.setup("fit")
    (train, validation) = (next(iter(each)) for each in (data.train_dataloader(), data.val_dataloader()))
    expected = model.to_latent(train["image"])
    torch.testing.assert_close(model.scale_factor * train["latent"].float(), expected, atol=2e-3, rtol=2e-3)
    assert "latent" not in validation
    train["latent"] = torch.zeros_like(train["latent"])
    used = model.training_latents(train, torch.Generator())
    assert torch.equal(used, torch.zeros_like(used) if cached else expected)
    others = {**config["data"]["params"]["train"]["params"], "size": 8}
    other = {"target": "ldm.data.ParquetImages", "params": others}
    assert data.own_rows(instantiate_from_config(other), other, data.database) is None  # pictures of another size
