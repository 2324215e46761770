"""A studio of the tiny model, and a server of its page, for the tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browsing import chromium, opened

pytest.importorskip("gradio")

from rdm.sampling.pipeline import Pipeline  # noqa: E402
from rdm.web.limits import Limits  # noqa: E402
from rdm.web.server import serving  # noqa: E402
from rdm.web.studio import Studio  # noqa: E402

LIMITS = Limits(prompt_characters=60, images=8, neighbours=8, steps=100, side=32, upload_bytes=200_000, pixels=40_000)


@pytest.fixture
def studio(loaded: Pipeline) -> Iterator[Studio]:
    with Studio({"flags": loaded}, LIMITS) as opened:
        yield opened


@pytest.fixture(scope="module")
def served(loaded: Pipeline) -> Iterator[Studio]:
    """The studio that is served at ``address``."""
    with Studio({"flags": loaded}, LIMITS) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(served: Studio) -> Iterator[str]:
    with serving(served) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """An open page, in which nothing must go wrong."""
    with opened(browser, address) as shown:
        yield shown
