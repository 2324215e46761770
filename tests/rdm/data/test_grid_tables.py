"""Tables of grids of tokens: computed once, completed after a kill, made again for another grid, refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import QUIET, ProjectionEmbedder, write_clip, write_pictures
from toy import grid_config

from ldm import table
from ldm.modules.encoders.clip import OpenClipEmbedder
from ldm.pictures import from_uint8
from ldm.util import instantiate_from_config
from rdm.data import row_tables
from rdm.data.references import GridTable, prepare_grid_table
from rdm.data.row_tables import RowTable
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.pictures import grid_tokens
from rdm.retrieval.database.rows import RetrievalDatabase

NEIGHBOURS = [np.array([[3, 1], [11, 3]]), np.array([[5], [0]])]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> OpenClipEmbedder:
    return OpenClipEmbedder(write_clip(tmp_path_factory.mktemp("clip") / "model"))


@pytest.fixture
def made(tmp_path: Path, source: dict[str, Any], embedder: OpenClipEmbedder) -> RetrievalDatabase:
    """A database of 19 pictures that a CLIP made."""
    return build_database(tmp_path / "clip", source, embedder, **QUIET)


def prepare(path: Path, database: RetrievalDatabase, embedder: Any, grid: int = 2) -> RowTable:
    return prepare_grid_table(path, database, NEIGHBOURS, embedder, grid, progress=False)


def test_the_tokens_are_those_of_the_rows_own_pictures(
    tmp_path: Path, made: RetrievalDatabase, embedder: OpenClipEmbedder
) -> None:
    table = prepare(tmp_path / "table", made, embedder)
    wanted = np.array([[11, 0, 3], [1, 1, 5]])
    pixels = torch.from_numpy(np.stack(made.patches(wanted))).permute(0, 3, 1, 2)
    expected = embedder.tokens(from_uint8(pixels), 2).view(2, 3, 4, 16)
    torch.testing.assert_close(grid_tokens(made, wanted, embedder, 2), expected)
    torch.testing.assert_close(table.of_rows(wanted).float(), expected, atol=2e-3, rtol=2e-3)
    assert {key: table.card[key] for key in ("grid", "embedder")} == {"grid": 2, "embedder": embedder.fingerprint}


def test_a_table_that_was_half_made_is_gone_on_with(
    tmp_path: Path, made: RetrievalDatabase, embedder: OpenClipEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_tables, "_BATCH", 2)
    whole, calls, plain = prepare(tmp_path / "whole", made, embedder), [], embedder.tokens

    def until_the_power_fails(images: torch.Tensor, grid: int) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(images, grid)

    monkeypatch.setattr(embedder, "tokens", until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "parts", made, embedder)
    with pytest.raises(FileNotFoundError, match=r"no grids of tokens at .*parts.*main\.py"):
        GridTable.open(tmp_path / "parts", made)
    calls.clear()
    parts = prepare(tmp_path / "parts", made, embedder)
    assert calls == [1, 1]  # one row tells how large its tokens are, and one was left
    assert parts.card == whole.card and np.array_equal(parts.values, whole.values)


def test_another_grid_is_made_again_and_another_database_or_embedder_refused(
    tmp_path: Path, made: RetrievalDatabase, embedder: OpenClipEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(tmp_path / "table", made, embedder)
    with pytest.raises(ValueError, match="grid: got 4, expected 1 to 2, the side of the feature map"):
        prepare(tmp_path / "table", made, embedder, 4)
    other = OpenClipEmbedder(write_clip(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match=r"was made by embedder .* with fingerprint .*use the embedder that made it"):
        prepare(tmp_path / "table", made, other)
    assert GridTable.open(tmp_path / "table", made).values.shape == (5, 4, 16)  # nothing was lost
    assert prepare(tmp_path / "table", made, embedder, 1).values.shape == (5, 1, 16)
    assert "differ in grid; computing them again" in caplog.text
    foreign = build_database(tmp_path / "foreign", write_pictures(tmp_path / "p", 12, 5), embedder, **QUIET)
    with pytest.raises(ValueError, match=f"grids of tokens .* belong to the database {made.fingerprint}"):
        GridTable.open(tmp_path / "table", foreign)


def test_what_has_no_tokens_is_refused_at_once(
    tmp_path: Path,
    database: RetrievalDatabase,
    made: RetrievalDatabase,
    embedder: OpenClipEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match="embedder projection-0 has no spatial features"):
        prepare(tmp_path / "table", database, ProjectionEmbedder())
    monkeypatch.setattr(table.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(
        ValueError, match=r"grids of tokens need .* 0\.0 MB free; name another path in data\.params\.tok"
    ):
        prepare(tmp_path / "table", made, embedder)
    monkeypatch.undo()
    monkeypatch.setattr(embedder, "tokens", lambda images, _: torch.full((len(images), 4, 16), 1e5))
    with pytest.raises(ValueError, match=r"grids of tokens of row 0 are not finite in float16"):
        prepare(tmp_path / "table", made, embedder)
    monkeypatch.setattr(embedder, "tokens", lambda images, _: torch.full((len(images), 4, 16), torch.nan))
    with pytest.raises(ValueError, match=r"tokens that are not finite for image 'row 0'"):
        prepare(tmp_path / "table", made, embedder)
    monkeypatch.setattr(embedder, "tokens", lambda images, _: torch.ones(len(images), 3, 16))
    with pytest.raises(ValueError, match=r"gave tokens of shape \[1, 3, 16\], expected \[1, 4, D'\]"):
        prepare(tmp_path / "table", made, embedder)
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"cannot be cut out again .*restore the source; a model with a grid") as gone:
        prepare(tmp_path / "table", made, embedder)
    assert "\n" not in str(gone.value)


def test_the_data_module_gives_every_image_its_neighbours_tokens(tmp_path: Path) -> None:
    config = grid_config(tmp_path)
    data, model = instantiate_from_config(config["data"]), instantiate_from_config(config["model"])
    data.prepare_data()
    assert not (tmp_path / "database" / "tokens-2").exists()  # sampling needs no table
    data.trainer = SimpleNamespace()
    data.prepare_data()
    data.setup("fit")
    embedder = instantiate_from_config(config["data"]["params"]["embedder"])
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        expected = grid_tokens(data.database, batch["neighbour_rows"].numpy(), embedder, 2)
        torch.testing.assert_close(batch["neighbour_tokens"].float(), expected, atol=2e-3, rtol=2e-3)
        assert model.context(batch).shape == (4, 2 * (1 + 4), 8)


def test_wrong_sections_of_tokens_are_named(tmp_path: Path) -> None:
    for wrong, message in (({"path": "a"}, "'grid'"), ({"grid": 2, "gird": 1}, "'gird'")):
        data = grid_config(tmp_path)["data"]
        data["params"]["tokens"] = wrong
        with pytest.raises(ValueError, match=f"tokens.*{message}"):
            instantiate_from_config(data)
