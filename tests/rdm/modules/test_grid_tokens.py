"""Grids of tokens as a part of the context."""

from typing import Any

import pytest
import torch

from rdm.modules.conditioner import Conditioner
from rdm.modules.grid_tokens import GridTokens


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(**options: Any) -> GridTokens:
    module = GridTokens(**{"width": 5, "context_dim": 6, "grid": 2, "ranks": 2, **options})
    for seed, parameter in enumerate(module.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    return module


def test_every_neighbour_is_its_vector_and_its_tokens_with_their_place_and_rank() -> None:
    module, pooled, grids = made(), draw(3, 4, 6), draw(3, 4, 4, 5, seed=1)
    context = module(pooled, grids).unflatten(1, (4, 5))
    assert torch.equal(context[:, :, 0], pooled)
    for neighbour, rank in ((0, 0), (1, 1), (3, 1)):  # further neighbours share the last rank
        for place in range(4):
            token = torch.nn.functional.layer_norm(grids[:, neighbour, place], (5,))
            expected = module.project(token) + module.places[place] + module.ranks[rank]
            torch.testing.assert_close(context[:, neighbour, 1 + place], expected)


def test_zeros_stay_zeros_and_no_neighbours_are_no_tokens() -> None:
    module, grids = made(), draw(2, 2, 4, 5)
    grids[1, 0] = 0
    context = module(torch.zeros(2, 2, 6), grids).unflatten(1, (2, 5))
    assert not context[1, 0].any() and context[:, :, 1:].any(-1).sum() == 12
    assert not module(torch.zeros(2, 2, 6), torch.zeros(2, 2, 4, 5)).any()
    assert module(torch.zeros(2, 0, 6), torch.zeros(2, 0, 4, 5)).shape == (2, 0, 6)


def test_grids_that_do_not_fit_are_named() -> None:
    for shape in ((2, 2, 16, 5), (2, 2, 4, 7), (2, 1, 4, 5)):
        with pytest.raises(ValueError, match=r"neighbour_tokens: got shape .*expected \(2, 2, 4, 5\).*data\.params"):
            made()(draw(2, 2, 6), draw(*shape))


def test_the_conditioner_says_whether_there_are_grids() -> None:
    assert Conditioner(tokens="pooled", token_width=5).grid_tokens(6) is None
    conditioner = Conditioner(k=3, tokens="grid", grid=2, token_width=5)
    module = conditioner.grid_tokens(6)
    assert module is not None and module(draw(1, 3, 6), draw(1, 3, 4, 5)).shape == (1, 15, 6)
    assert len(module.ranks) == 3 and list(conditioner.state_dict()) == []
    for wrong, message in (
        ({"tokens": "gird"}, "tokens='gird'"),
        ({"tokens": "grid", "grid": 3, "token_width": 5}, "grid=3"),
        ({"tokens": "grid"}, "token_width=None with tokens: grid"),
    ):
        with pytest.raises(ValueError, match=message):
            Conditioner(**wrong)
