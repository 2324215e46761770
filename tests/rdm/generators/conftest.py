"""Tiny pipelines of diffusers, written once; no test here reaches a network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tiny_pipelines import Tiny, write_tiny  # noqa: E402

import rdm  # noqa: E402
from rdm.sampling.pipeline import Pipeline  # noqa: E402


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return write_tiny(tmp_path_factory.mktemp("sd") / "set", "sd")


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return write_tiny(tmp_path_factory.mktemp("sdxl") / "set", "sdxl")


@pytest.fixture(scope="session")
def drawn_by(sd: Tiny) -> Pipeline:
    """Stable Diffusion with an adapter whose encoder is the embedder of the database."""
    return rdm.load(**sd.arguments)


@pytest.fixture
def moved(sd: Tiny, tmp_path: Path) -> dict[str, str]:
    """The arguments of ``rdm.load``, with a pipeline whose folder may be changed."""
    import shutil

    shutil.copytree(sd.pipeline, tmp_path / "pipeline")
    return {**sd.arguments, "generator": str(tmp_path / "pipeline")}
