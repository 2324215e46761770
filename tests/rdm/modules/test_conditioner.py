"""Neighbours and query as context tokens."""

import pytest
import torch
import torch.nn.functional as F

from rdm.modules.conditioner import Conditioner

NEIGHBOURS = torch.arange(1.0, 13.0).view(2, 2, 3)
QUERY = -torch.ones(2, 3)


def test_raw_vectors_are_passed_on() -> None:
    assert torch.equal(Conditioner()(NEIGHBOURS), NEIGHBOURS)
    assert torch.equal(Conditioner()(NEIGHBOURS, QUERY), NEIGHBOURS)
    assert list(Conditioner().state_dict()) == []


def test_normalised_vectors_have_the_asked_length() -> None:
    context = Conditioner(normalize=True, scale=16.0)(5 * NEIGHBOURS)
    assert torch.allclose(context.norm(dim=-1), torch.full((2, 2), 16.0))
    assert torch.allclose(context, 16 * F.normalize(NEIGHBOURS, dim=-1))
    zero = Conditioner(normalize=True)(torch.zeros(1, 1, 3))
    assert torch.equal(zero, torch.zeros(1, 1, 3))


def test_the_query_takes_the_first_place_where_asked() -> None:
    expected = torch.cat([QUERY[:, None], NEIGHBOURS], dim=1)
    assert torch.equal(Conditioner(include_query=True)(NEIGHBOURS, QUERY), expected)
    assert torch.equal(Conditioner()(NEIGHBOURS, QUERY, include_query=True), expected)
    assert torch.equal(Conditioner(include_query=True)(NEIGHBOURS, include_query=False), NEIGHBOURS)
    assert torch.equal(Conditioner(include_query=True)(NEIGHBOURS[:, :0], QUERY), QUERY[:, None])


def test_what_does_not_belong_together_is_refused() -> None:
    conditioner = Conditioner(include_query=True)
    with pytest.raises(ValueError, match=r"query.*None.*\(2, 2, 3\)"):
        conditioner(NEIGHBOURS)
    with pytest.raises(ValueError, match=r"query: got \(2, 4\)"):
        conditioner(NEIGHBOURS, torch.zeros(2, 4))
    for wrong in (NEIGHBOURS[:, :0], NEIGHBOURS[0]):
        with pytest.raises(ValueError, match=r"context.*\[B, L, D\]"):
            Conditioner()(wrong)
    for options in ({"k": 0}, {"scale": 0.0}):
        with pytest.raises(ValueError, match="conditioner.*k=.*scale="):
            Conditioner(**options)
