"""A small database and a small system, for the tests that do not bring one of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pictures import QUIET, ProjectionEmbedder, write_pictures
from toy import grid_config, rdm_config, references_config, ship

from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.sampling.pipeline import Pipeline


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    return write_pictures(tmp_path / "pictures", 19)


@pytest.fixture
def database(tmp_path: Path, source: dict[str, Any]) -> RetrievalDatabase:
    return build_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A tiny model over a database of 40 flags, with random weights."""
    folder = tmp_path_factory.mktemp("system")
    return Pipeline.load(str(ship(folder / "model", rdm_config(folder))))


@pytest.fixture(scope="session")
def with_references(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A tiny model that also sees the latents of the neighbours, with random weights."""
    folder = tmp_path_factory.mktemp("references")
    return Pipeline.load(str(ship(folder / "model", references_config(folder))))


@pytest.fixture(scope="session")
def with_grids(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A tiny model that also sees 2x2 tokens of each neighbour, with random weights."""
    folder = tmp_path_factory.mktemp("grids")
    return Pipeline.load(str(ship(folder / "model", grid_config(folder))))
