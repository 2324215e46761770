"""Weights on disk: safe, strict, atomic."""

import hashlib
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pickled import Evil
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ldm.checkpoint import average_as_weights, load_weights, read_metadata, read_weights, write_weights
from ldm.files import file_hash
from ldm.modules.ema import LitEma

STATE = {
    "a.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "a.half": torch.tensor([1.0, 1e-7]).half(),
    "a.brain": torch.tensor([3.0, -1.0]).bfloat16(),
    "steps": torch.tensor(7),
    "empty": torch.zeros(0, 2),
}


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(sorted(got)) == sorted(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


def test_round_trip_is_bit_equal(tmp_path: Path) -> None:
    write_weights(tmp_path / "new" / "m.safetensors", STATE, metadata={"step": 3, "name": "x"})
    assert_same(read_weights(tmp_path / "new" / "m.safetensors"), STATE)
    assert read_metadata(tmp_path / "new" / "m.safetensors") == {"format": "pt", "step": "3", "name": "x"}
    torch.save(STATE, tmp_path / "m.pt")
    assert_same(read_weights(tmp_path / "m.pt"), STATE)


def test_writing_converts_floats_only_and_copies_shared_storage(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {"x": shared, "view": shared.view(2, 3).T, "count": torch.tensor([5])}
    write_weights(tmp_path / "m.safetensors", state, dtype=torch.float16)
    got = read_weights(tmp_path / "m.safetensors")
    assert_same(got, {"x": shared.half(), "view": shared.view(2, 3).T.half(), "count": torch.tensor([5])})


def test_one_changed_bit_of_a_weight_is_noticed(tmp_path: Path) -> None:
    write_weights(file := tmp_path / "m.safetensors", STATE)
    content = file.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    for place in (begin, (begin + len(content)) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=r"m\.safetensors is damaged: .* checksum [0-9a-f]{12}; download it again"):
            read_weights(file)
    file.write_bytes(content)
    assert_same(read_weights(file), STATE)


def test_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    metadata = {name: f'{name} "quoted"\n\t\u00e9 \u0001' for name in "zyxwvutsrq"}
    for name in ("a", "b"):
        write_weights(tmp_path / name, STATE, metadata=metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_metadata(tmp_path / "a") == {"format": "pt", **metadata}


def test_a_checksum_holds_however_a_file_is_laid_out(tmp_path: Path) -> None:
    write_weights(file := tmp_path / "m.safetensors", STATE)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    turned = {name: STATE[name] for name in reversed(STATE)}
    save_file(turned, tmp_path / "other.safetensors", metadata)
    assert_same(read_weights(tmp_path / "other.safetensors"), STATE)
    save_file(turned, tmp_path / "none.safetensors")
    assert_same(read_weights(tmp_path / "none.safetensors"), STATE)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    write_weights(file := tmp_path / "m.safetensors", STATE)
    before = file_hash(file)
    with pytest.raises(TypeError):
        write_weights(file, {"x": torch.zeros(2)}, metadata={"no json": object()})
    with pytest.raises(RuntimeError):
        write_weights(file, {"x": torch.eye(2).to_sparse()})
    assert file_hash(file) == before == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_lightning_checkpoints_of_compvis_are_read(tmp_path: Path) -> None:
    content = {
        "state_dict": STATE,
        "epoch": 3,
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.ones(1)}},
    }
    torch.save(content, tmp_path / "m.ckpt")
    assert_same(read_weights(tmp_path / "m.ckpt"), STATE)


def test_numbers_of_numpy_are_read_also_those_of_its_first_version(tmp_path: Path) -> None:
    """As the learning rates of a cosine schedule lie in checkpoints of CompVis."""
    rates = [np.float64(1e-4), np.float32(2.0), np.int64(3), np.bool_(True)]
    torch.save({"state_dict": STATE, "lr_schedulers": [{"_last_lr": rates}]}, tmp_path / "new.ckpt")
    assert_same(read_weights(tmp_path / "new.ckpt"), STATE)
    with zipfile.ZipFile(tmp_path / "new.ckpt") as new, zipfile.ZipFile(tmp_path / "old.ckpt", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in (tmp_path / "old.ckpt").read_bytes()
    assert_same(read_weights(tmp_path / "old.ckpt"), STATE)


@pytest.mark.parametrize("name", ["evil.ckpt", "evil.pt"])
def test_an_evil_pickle_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    made = tmp_path / "made"
    torch.save({"state_dict": STATE, "callbacks": Evil(made)}, tmp_path / name)
    with pytest.raises(ValueError, match=r"refused.*\.mkdir") as caught:
        read_weights(tmp_path / name)
    (tmp_path / name).write_bytes(pickle.dumps(Evil(made)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one line, and not torch's own beside it
        with pytest.raises(ValueError, match="refused"):
            read_weights(tmp_path / name)
    assert not made.exists() and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    file = tmp_path / name
    state = {"w": torch.zeros(3000)}
    write_weights(file, state) if name.endswith("safetensors") else torch.save({"state_dict": state}, file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match="not a complete|was refused") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.ckpt"):
        read_weights(tmp_path / "none.ckpt")
    torch.save({"state_dict": {"x": 3}}, tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match="holds no state_dict of tensors"):
        read_weights(tmp_path / "m.ckpt")
    (tmp_path / "text.ckpt").write_text("hello, this is no checkpoint")
    with pytest.raises(ValueError, match="text.ckpt"):
        read_weights(tmp_path / "text.ckpt")


def test_loading_is_strict_but_for_the_allowed() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    good = {name: torch.full_like(value, 0.5) for name, value in module.state_dict().items()}
    load_weights(module, {name: value.half() for name, value in good.items()})
    assert_same(module.state_dict(), good)
    for changed, message in (
        ({"0.bias": None}, "m.ckpt does not fit Sequential: 1 missing: 0.bias"),
        ({"2.bias": torch.zeros(1)}, "1 unexpected: 2.bias"),
        ({"0.bias": torch.zeros(4)}, r"1 of another shape: 0.bias \(4,\) != \(3,\)"),
    ):
        state = {name: value for name, value in (good | changed).items() if value is not None}
        with pytest.raises(ValueError, match=message):
            load_weights(module, state, source="m.ckpt")
    partial = {name: value + 1 for name, value in good.items() if name != "0.bias"}
    load_weights(module, partial | {"loss.w": torch.ones(1)}, allow=("loss.*", "0.bias"))
    assert_same(module.state_dict(), partial | {"0.bias": good["0.bias"]})


def test_average_as_weights_equals_copying_the_average() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
            self.model_ema = LitEma(self.model)
            self.first_stage_model = nn.Linear(2, 2)

    holder = Holder()
    with torch.no_grad():
        for parameter in holder.model.parameters():
            parameter.add_(1.0)
        holder.model_ema(holder.model)
    got = average_as_weights(holder.state_dict())
    raw = {name: value.clone() for name, value in holder.state_dict().items()}
    holder.model_ema.copy_to(holder.model)
    expected = {name: v for name, v in holder.state_dict().items() if not name.startswith("model_ema.")}
    assert_same(got, expected)
    assert not torch.equal(got["model.0.weight"], raw["model.0.weight"])
    assert_same(average_as_weights(got), got)
