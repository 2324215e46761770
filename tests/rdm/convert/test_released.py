"""What a downloaded checkpoint is: layouts of CompVis' code are recognised, and each kind of bad file has its line."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pickled import Evil
from pytorch_lightning.callbacks import ModelCheckpoint
from small_models import RDM
from small_models import trained_rdm as trained

from ldm.checkpoint import read_contents, read_weights, write_checkpoint, write_training_state, write_weights
from ldm.config import read_config, write_config
from ldm.files import file_hash
from rdm.convert.released import KNOWN, identify, report, sizes
from scripts import check_checkpoint

ROOT = Path(__file__).parents[3]
LAYOUTS = ROOT / "tests" / "layouts"
# The layouts of files that were released and whose configs are here, and what each is called.
RELEASED = {
    "ldm__configs__retrieval-augmented-diffusion__768x768": "CompVis' text-to-image RDM of 768 pixels",
    "rdm__models__rdm__imagenet": "CompVis' RDM of ImageNet",
    "rdm__models__rdm__imagenet_in-db": "CompVis' RDM of ImageNet",
    "rdm__models__rdm__ffhq": "CompVis' RDM of FFHQ",
    "rdm__models__rarm__imagenet__dogs": "CompVis' RARM of ImageNet",
    "rdm__models__rarm__imagenet__animals": "CompVis' RARM of ImageNet",
    **{
        f"ldm__models__first_stage_models__{name}": f"CompVis' first stage {name}"
        for name in ("kl-f16", "vq-f4-noattn")
    },
}


def layout(name: str) -> tuple[dict[str, torch.Tensor], int]:
    """The tensors of a layout, of zeros that share their memory, and its number of parameters."""
    found = json.loads(gzip.decompress((LAYOUTS / f"{name}.json.gz").read_bytes()))
    zero = {kind: torch.zeros((), dtype=getattr(torch, kind)) for kind in ("float32", "int32", "int64")}
    tensors = {key: zero[kind].expand(shape) for key, (shape, kind) in found["state_dict"].items()}
    return tensors, found["n_params"]


def released(name: str, folder: Path) -> Path:
    """A file with all names and shapes of a released one, which is small as its zeros are stored once."""
    write_training_state(folder / "model.ckpt", {"state_dict": layout(name)[0], "epoch": 7})
    assert (folder / "model.ckpt").stat().st_size < 1e6
    return folder / "model.ckpt"


def said(path: Path, config: Path | None = None) -> str:
    return "\n".join(report(path, config))


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_layout_is_recognised(name: str, tmp_path: Path) -> None:
    text = said(released(name, tmp_path))
    assert f"parameters: {layout(name)[1]:,} (" in text or name.startswith("ldm__models__first")
    assert "epoch 7" in text and f"is: {RELEASED[name]}" in text and "no name is missing or unexpected" in text


@pytest.mark.parametrize(
    ("name", "most_like", "reason"),
    [
        ("ldm__configs__latent-diffusion__cin256-v2", "RDM of ImageNet", "classes or texts in place of neighbours"),
        ("rdm__configs__rarm__dogs", "RARM of ImageNet", "of another shape: first_stage_model"),
        ("ldm__models__ldm__ffhq256", "RDM of FFHQ", "missing: model.diffusion_model"),
    ],
)
def test_a_layout_like_a_released_one_is_not_taken_for_it(name: str, most_like: str, reason: str) -> None:
    """The first has the network of the RDM, and in addition one that embeds classes."""
    known, differs = identify(layout(name)[0])
    assert known is not None and most_like in known.title and reason in differs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rdm__models__rdm__imagenet",
         ["U-Net of 192 channels times 1, 2, 3, 5, latents of 3 channels, contexts of 512",
          "first stage VQ, 8192 codes of 3 numbers, 4 times"]),
        ("ldm__configs__retrieval-augmented-diffusion__768x768",
         ["U-Net of 448 channels times 1, 2, 3, 4, latents of 16 channels, contexts of 768",
          "first stage KL, latents of 16 channels, 16 times"]),
        ("rdm__models__rarm__imagenet__dogs", ["transformer of 18 blocks, 768 wide, 16386 tokens, contexts of 512",
                                               "first stage VQ, 16384 codes of 256 numbers, 16 times"]),
        ("ldm__models__ldm__lsun_churches256", ["U-Net of 192 channels times 1, 2, 4, latents of 4 channels",
                                                "first stage KL, latents of 4 channels, 8 times"]),
        ("ldm__models__first_stage_models__vq-f8-n256", ["first stage VQ, 256 codes of 4 numbers, 8 times"]),
    ],
)  # fmt: skip
def test_sizes_are_read_from_the_shapes(name: str, expected: list[str]) -> None:
    found = sizes(layout(name)[0])
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True)), found


def test_every_known_model_has_a_place_with_its_config() -> None:
    for known in (each for group in KNOWN.values() for each in group):
        for place in known.place.replace(", ", " models/rarm/").replace(" or ", " models/rarm/").split():
            stated, own = (
                read_config([file], overrides)["model"]
                for file, overrides in ((known.config, known.overrides), (f"{place}/config.yaml", ()))
            )
            assert stated["params"].get("unet_config") == own["params"].get("unet_config"), place
            assert stated["params"].get("ddconfig") == own["params"].get("ddconfig"), place
            stages = [model["params"].get("first_stage_config") for model in (stated, own)]
            assert stages[0] == stages[1], place


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small RDM in a file as CompVis' training wrote it: with optimiser states, and a callback's class as a key."""
    state = trained().state_dict()
    adam = {number: {"exp_avg": torch.zeros(1000, 50)} for number in range(2)}
    content = {
        "epoch": 3, "global_step": 99, "callbacks": {ModelCheckpoint: {"best_model_score": torch.ones(1)}},
        "optimizer_states": [{"state": adam}], "state_dict": state,
    }  # fmt: skip
    file = tmp_path / "place" / "model.ckpt"
    file.parent.mkdir()
    torch.save(content, file)
    return file


def test_a_model_of_other_sizes_is_described_without_reading_its_numbers(checkpoint: Path) -> None:
    contents, state = read_contents(checkpoint), trained().state_dict()
    assert {n: (t.shape, t.dtype) for n, t in contents.tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in state.items()
    }
    assert all(tensor.is_meta for tensor in contents.tensors.values()) and contents.others["global_step"] == 99
    text = said(checkpoint)
    assert "epoch 3, global_step 99; beside them 0.4 MB that only training needs" in text
    assert "is: no known model; most like" in text and "missing: " in text
    channels = RDM["params"]["unet_config"]["params"]["model_channels"]
    assert f"sizes: U-Net of {channels} channels" in text
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("model_ema.") and "." in name}
    assert f"parameters: {sum(t.numel() for t in kept.values()):,} (" in text
    write_weights(checkpoint.with_suffix(".safetensors"), state)
    same = said(checkpoint.with_suffix(".safetensors"))
    assert text.splitlines()[1:-1] == same.splitlines()[1:-1] and "global_step" not in same


def test_a_file_is_compared_with_the_config_beside_it(checkpoint: Path) -> None:
    config = checkpoint.parent / "config.yaml"
    write_config(config, {"model": RDM})
    assert f"fits: {config}" in said(checkpoint, config)
    state = read_weights(checkpoint)
    name = next(name for name in state if name.startswith("model.diffusion_model."))
    write_checkpoint(checkpoint, {key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match=f"model.ckpt does not fit {config}: 1 missing: {name}"):
        said(checkpoint, config)


def test_a_released_file_in_the_place_of_another_is_named(tmp_path: Path) -> None:
    """As CompVis' script for downloads puts it there."""
    file = released("rdm__models__rdm__ffhq", tmp_path)
    with pytest.raises(ValueError, match="is CompVis' RDM of FFHQ, but .*imagenet.* move it to models/rdm/ffhq"):
        said(file, ROOT / "models/rdm/imagenet/config.yaml")
    assert "fits: " in said(file, ROOT / "models/rdm/ffhq/config.yaml")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5000])


def archive(*names: str) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with zipfile.ZipFile(file, "w") as written:
            for name in names:
                written.writestr(name, b"x")

    return write


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (cut, "it ends after .* bytes, before its list of contents; continue the download"),
    "empty": (lambda file: file.write_bytes(b""), "it is empty"),
    "page": (lambda file: file.write_bytes(b"\n<!DOCTYPE html><html>404</html>"), "it is a web page"),
    "pointer": (lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "pointer of Git LFS"),
    "packed": (lambda file: file.write_bytes(b"\x1f\x8b\x08 more"), "it is a gzip archive; unpack it"),
    "zip of a checkpoint": (archive("vq/config.yaml", "vq/model.ckpt"), "zip archive with vq/model.ckpt; unpack it"),
    "zip of others": (archive("a.txt", "b.txt", "c.txt", "d.txt"), r"zip archive of a.txt, b.txt, c.txt \.\.\.; give"),
    "database": (
        lambda file: np.savez(file.open("wb"), embedding=np.zeros((2, 4)), img_id=np.zeros(2)),
        "arrays of numpy, as a part of a database does",
    ),
    "nn_memory": (lambda file: file.write_bytes(pickle.dumps({"nn_memory": [1], "id_count": {1: 2}})), "model.ckpt"),
    "text": (lambda file: file.write_text("hello, this is no checkpoint"), "is not a complete checkpoint"),
    "no weights": (lambda file: torch.save({"x": 1}, file), "holds no state_dict of tensors"),
    "code": (lambda file: torch.save({"state_dict": Evil(file.parent / "evil")}, file), "mkdir, which could run code"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_has_its_line(
    name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same line when it is loaded, and nothing of it is run."""
    spoil, expected = BAD[name]
    spoil(checkpoint)
    for read in (read_contents, read_weights):
        with pytest.raises(ValueError, match=expected):
            read(checkpoint)
    monkeypatch.setattr("sys.argv", ["check_checkpoint.py", str(checkpoint)])
    with pytest.raises(SystemExit) as stop:
        check_checkpoint.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and str(checkpoint) in error
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model.ckpt"]


def test_the_script_reads_every_byte_if_asked(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(checkpoint.parent / "config.yaml", {"model": RDM})
    monkeypatch.setattr("sys.argv", ["check_checkpoint.py", str(checkpoint.parent), "--all_bytes"])
    check_checkpoint.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(checkpoint) and lines[-1].endswith(f"SHA-256 {file_hash(checkpoint)}")
    with zipfile.ZipFile(checkpoint) as written:
        largest = max(written.infolist(), key=lambda info: info.file_size)
    data = bytearray(checkpoint.read_bytes())
    data[largest.header_offset + 5000] ^= 1  # one bit within the numbers of a tensor
    checkpoint.write_bytes(data)
    with pytest.raises(SystemExit):
        check_checkpoint.main()
    assert f"the checksum of {largest.filename} in it differs" in capsys.readouterr().err


def test_an_old_checkpoint_of_torch_is_described_too(checkpoint: Path) -> None:
    state = read_weights(checkpoint)
    old = checkpoint.with_name("old.ckpt")
    torch.save({"state_dict": state}, old, _use_new_zipfile_serialization=False)
    assert read_contents(old).tensors.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in read_weights(old).items())


def test_weights_in_use_outlive_their_file(checkpoint: Path) -> None:
    """They stay in the file until they are used; another checkpoint in its place does not change them."""
    state = read_weights(checkpoint)
    name = max(state, key=lambda each: state[each].numel())
    expected = state[name].clone()
    write_checkpoint(checkpoint, {name: torch.zeros(3)})
    assert torch.equal(state[name], expected)
    state[name].zero_()  # changes the memory, not the file
    assert torch.equal(read_weights(checkpoint)[name], torch.zeros(3))
