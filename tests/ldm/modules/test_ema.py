"""The moving average against the original's numbers and its own law."""

import pytest
import torch
from golden_cases import load_golden
from torch import nn

from ldm.modules.ema import LitEma


def test_matches_original() -> None:
    case = load_golden("ema_small_unet")
    model = case.build()
    for frozen in case.card["options"]["frozen"]:
        model.get_submodule(frozen).requires_grad_(False)
    ema, weights = LitEma(model), case.weights
    scales, shifts = case.tensors["in.a"], case.tensors["in.b"]
    for update in range(case.card["options"]["n"]):
        model.load_state_dict({name: w * scales[update] + shifts[update] for name, w in weights.items()})
        ema(model)
        case.check(f"decay_state{update}.num_updates", ema.num_updates)
    expected = case.part("out.ema")
    got = ema.state_dict()
    assert {name: t.dtype for name, t in got.items()} == {name: t.dtype for name, t in expected.items()}
    for name, value in got.items():
        case.check(f"ema.{name}", value)


def test_an_average_restarts_as_a_whole_or_in_rows() -> None:
    model = nn.Linear(2, 3)
    ema = LitEma(model)
    ema.weight.zero_()
    ema.bias.zero_()
    ema.restart(model, model.weight, torch.tensor([False, True, False]))
    assert torch.equal(ema.weight[1], model.weight[1]) and not ema.weight[[0, 2]].any() and not ema.bias.any()
    ema.restart(model, nn.Parameter(model.weight.detach()))  # not one of the model's
    assert not ema.weight[[0, 2]].any()
    ema.restart(model)
    assert torch.equal(ema.weight, model.weight) and torch.equal(ema.bias, model.bias)


@pytest.mark.parametrize(("warm", "kept"), [(True, (2 / 11) * (3 / 12)), (False, 0.9**2)])
def test_decay(warm: bool, kept: float) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema = LitEma(model, decay=0.9, use_num_updates=warm)
    nn.init.constant_(model.weight, 0.0)
    for _ in range(2):
        ema(model)
    assert float(ema.weight) == pytest.approx(kept, rel=1e-6)
    assert int(ema.num_updates) == (2 if warm else -1)


def test_weights_are_swapped_and_come_back_even_after_an_error() -> None:
    model = nn.Linear(2, 2)
    own = model.weight.detach().clone()
    ema = LitEma(model)
    ema.weight.fill_(3.0)
    with ema.applied(model):
        assert torch.equal(model.weight, torch.full((2, 2), 3.0))
    assert torch.equal(model.weight, own)
    with pytest.raises(KeyError), ema.applied(model):
        raise KeyError("inside")
    assert torch.equal(model.weight, own)
    ema.store(model.parameters())
    ema.copy_to(model)
    assert float(model.weight.detach().mean()) == 3.0
    ema.restore(model.parameters())
    assert torch.equal(model.weight, own)
    with pytest.raises(ValueError, match="2 parameters .* 0 stored"):
        ema.restore(model.parameters())


def test_refuses() -> None:
    with pytest.raises(ValueError, match="ema decay is 1.5"):
        LitEma(nn.Linear(1, 1), decay=1.5)
    clash = nn.ModuleDict({"a": nn.ModuleDict({"bc": nn.Linear(1, 1)}), "ab": nn.ModuleDict({"c": nn.Linear(1, 1)})})
    with pytest.raises(ValueError, match="same name as another"):
        LitEma(clash)
