"""Inputs that the benchmark of bad inputs found to end in more than one line, or worse: one for each kind of fault."""

from __future__ import annotations

import argparse
import io
import json
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_models import DDCONFIG
from torch import nn

from benchmarks.synthetic import write_database
from ldm.checkpoint import load_weights, read_contents, read_weights, write_checkpoint
from ldm.command_line import ArgumentParser, command_line, readable
from ldm.config import read_config
from ldm.data import ParquetImages, WebDatasetImages
from ldm.data.decode import decode_image, open_picture
from ldm.downloads import check_bytes, instead_of_weights
from ldm.files import read_array, read_json, write_json
from ldm.models.autoencoder import AutoencoderKL, VQModel
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.models.first_stage import frozen_first_stage
from ldm.modules.quantize import Codebook
from ldm.util import check_params, check_target, in_one_line, instantiate_from_config
from rdm.cli.database import build_command
from rdm.convert.nn_memory import read_nn_memory
from rdm.retrieval.config import check_database, embedder_config, load_embedder
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.database.shards import check_card, new_folder, to_our_columns
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.index.search import check_types


def refused(call: Any, *named: str) -> None:
    """Asserts that a call ends in a ValueError of one line with some words."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable() and all(word in message for word in named), message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("just words\n", "a text"),
        ("42\n", "int"),
        ("a: ${b}\nb: ${a}\n", "'a'"),
        ("model:\n\ttarget: x\n", "line 2"),
        ("a: !!python/object/apply:os.system ['touch x']\n", "python/object"),
        ("a: " + "9" * 5000, "digits"),
    ],
)
def test_configs(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    refused(lambda: read_config([tmp_path / "bad.yaml"]), "bad.yaml", named)


def test_targets_and_params() -> None:
    refused(lambda: instantiate_from_config({"target": "ldm..data"}), "ldm..data", "correct")
    refused(lambda: instantiate_from_config({"target": "torch.nn.Linear", "deeper": 1}), "'deeper'", "target or params")
    refused(lambda: check_params("x", lambda root: root, {"other": 1}), "'other'")

    refused(lambda: instantiate_from_config({"target": "torch.nn."}), "'torch.nn.'", "name a class")
    refused(lambda: check_target(-1, "data"), "data: ", "-1", "give {target: NAME")

    def build(root: str) -> None:
        del root

    for kind, value, words in (("str", ["a"], "expected a text"), ("int", 1.5, "expected a whole number")):
        build.__annotations__["root"] = kind
        refused(lambda value=value: check_params("x", build, {"root": value}), f"root={value}", words)
    check_params("x", build, {"root": 2.0})


def test_first_stages_that_cannot_work() -> None:
    refused(lambda: Codebook(0, 3), "n_embed=0", "at least 1")
    refused(lambda: VQModel(DDCONFIG | {"out_ch": 0}, n_embed=4, embed_dim=3), "out_ch=0", "at least 1")
    refused(lambda: VQModel(DDCONFIG | {"double_z": True}, n_embed=4, embed_dim=3), "double_z: got true", "false")
    refused(lambda: VQModel("d", n_embed=4, embed_dim=3), "ddconfig", "'d'")
    refused(lambda: AutoencoderKL("d", None, embed_dim=3), "ddconfig", "'d'")
    refused(lambda: frozen_first_stage("os.system"), "first_stage_config", "os.system", "give {target: NAME")
    refused(lambda: DiffusionWrapper("os.system"), "unet_config", "os.system", "give {target: NAME")


def test_a_command_without_memory(capsys: pytest.CaptureFixture[str]) -> None:
    @command_line
    def too_much() -> None:
        torch.empty(10**16)

    @command_line
    def other() -> None:
        raise RuntimeError("a fault of ours")

    with pytest.raises(SystemExit):
        too_much()
    said = capsys.readouterr().err
    assert said.startswith("error: no memory is left (") and said.endswith("make the model or the batch smaller\n")
    assert said.count("\n") == 1
    with pytest.raises(RuntimeError, match="of ours"):
        other()


def test_errors_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert readable("got '\x1b[2J\u202e',\n expected x") == "got '\\x1b[2J\\u202e', expected x"
    assert readable("--by a\x1eb") == "--by a\\x1eb"  # some separators count as white space
    assert readable("a" * 5000) == "a" * 150 + "..." + "a" * 30 and readable("a" * 500) == "a" * 500
    long = readable("ab " * 1000)
    assert long.endswith("b ab") and " ... " in long and len(long) < 1500
    parser = ArgumentParser()
    parser.add_argument("--n", type=int)
    with pytest.raises(SystemExit):
        parser.parse_args(["--n", "\x1b[31m"])
    assert "\\x1b[31m" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["F4", "X9"])
def test_dtypes_that_torch_lacks(tmp_path: Path, dtype: str) -> None:
    header = json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "bad.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    refused(lambda: read_contents(tmp_path / "bad.safetensors"), "bad.safetensors", dtype)


def test_weights(tmp_path: Path) -> None:
    linear = nn.Linear(2, 2)
    state = {name: value * float("nan") for name, value in linear.state_dict().items()}
    refused(lambda: load_weights(linear, state, source="m.ckpt"), "m.ckpt", "NaN in weight")
    assert linear.weight.isfinite().all()
    (tmp_path / "text.ckpt").write_bytes(b"hello\n")
    refused(lambda: read_weights(tmp_path / "text.ckpt"), "text.ckpt", "another file")
    write_checkpoint(tmp_path / "m.ckpt", {"a": torch.ones(3)})
    data = (tmp_path / "m.ckpt").read_bytes()
    (tmp_path / "m.ckpt").write_bytes(data.replace(b"PK\1\2", b"PK\1\3"))  # the list of contents
    assert "damaged" in (instead_of_weights(tmp_path / "m.ckpt") or "")
    refused(lambda: check_bytes(tmp_path / "m.ckpt"), "m.ckpt", "download")


def test_no_program_is_started_for_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: started.append(words))
    monkeypatch.setattr(subprocess, "check_call", lambda *words, **_: started.append(words))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    refused(lambda: decode_image(script, 8), "no format")
    refused(lambda: open_picture(b"\xd7\xcd\xc6\x9a" + bytes(80)), "no format")
    assert started == []


def test_pictures_of_pixels_that_pillow_does_not_know() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "DDS")
    data = bytearray(stream.getvalue())
    data[80:84] = b"\0\x10\0\0"  # flags of the pixel format
    refused(lambda: decode_image(bytes(data), 8), "unreadable")


def test_parquet_files(tmp_path: Path) -> None:
    file = tmp_path / "bad.parquet"
    image = {"bytes": b"", "path": None}
    pq.write_table(pa.table({"image": [image], "category": [[["a"]]]}), file)
    refused(lambda: ParquetImages(str(file), 8, where={"category": "x"}), "bad.parquet", "category", "where")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": 7}]}), file)
    with pytest.raises(ValueError, match="1 broken images.*bad.parquet#0"):
        ParquetImages(str(file), 8, max_broken=0)[0]
    pq.write_table(pa.table({"image": [image], "category": [[["a"]]]}), file)
    data = file.read_bytes()
    for place in range(0, len(data), 7):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            images = ParquetImages(str(file), 8, max_broken=0)
            [images.metadata(index) for index in range(len(images))]
        except ValueError as error:
            assert "bad.parquet" in str(error) and str(error).isprintable()


def test_tar_shards(tmp_path: Path) -> None:
    refused(lambda: WebDatasetImages("x-{0..99999999999}.tar", 8), "x-{0..99999999999}.tar", "digits")
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    for name, content, size, words in [
        ("cls", b"", 2**33, "class of 8589934592 bytes"),
        ("cls", b"9" * 70_000, 70_000, "class of 70000 bytes"),
        ("json", b"[" * 100_000, 100_000, "too deeply"),
    ]:
        with (tmp_path / "bad.tar").open("wb") as file:
            for end, data, declared in (("png", stream.getvalue(), len(stream.getvalue())), (name, content, size)):
                info = tarfile.TarInfo(f"1.{end}")
                info.size = declared
                file.write(info.tobuf() + data + bytes(-len(data) % 512))
            file.write(bytes(1024))
        try:
            WebDatasetImages(str(tmp_path / "bad.tar"), 8, max_broken=0)[0]
        except ValueError as error:
            assert words in f"{error} {error.__cause__}"
        else:
            raise AssertionError(words)
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("\udcff.png"))
    refused(lambda: WebDatasetImages(str(tmp_path / "bad.tar"), 8), "bad.tar", r"'\udcff.png'", "names in UTF-8")


@pytest.mark.parametrize("header", ["((", "{'descr': '<f4', 'fortran_order': False, 'shape': (-6, 8)}", "(" * 20_000])
def test_arrays(tmp_path: Path, header: str) -> None:
    text = header.encode() + b"\n"
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + bytes(192))
    refused(lambda: read_array(tmp_path / "bad.npy"))


def test_arrays_that_are_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    refused(lambda: read_array(tmp_path / "a.npy", None), "archive")
    np.save(tmp_path / "b.npy", np.arange(3))
    assert read_array(tmp_path / "b.npy").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02Nr\xff\xff\xff\xff.",  # a memo of which memory for 2^32 places would be taken
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000000\ntS'd'\ntR.",
        b"P123\n.",
        b"c\0x\ny\n.",
    ],
)
def test_memories(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.p").write_bytes(data)
    refused(lambda: read_nn_memory(tmp_path / "bad.p"), "bad.p")


def test_cards(tmp_path: Path) -> None:
    shard = {"name": "00000", "rows": 3}
    card = {"dim": 8, "rows": 3, "dtype": "float16", "shards": [shard]}
    check_card(card)
    refused(lambda: check_card({**card, "rows": "3"}), "rows is '3'")
    refused(lambda: check_card({**card, "shards": [{**shard, "name": "../../x"}]}), "../../x")
    source = {"source": {}, "patches": {}, "shards": 1}
    check_card({**card, "sources": [source]})
    for bad, named in (("x", "source 0 is 'x'"), ({**source, "shards": [1]}, "shards of source 0 is [1]")):
        refused(lambda bad=bad: check_card({**card, "sources": [bad]}), named)
    check_types({"factory": "Flat", "bytes": 3}, tmp_path)
    refused(lambda: check_types({"dim": False}, tmp_path), "dim=False")
    refused(lambda: check_types({"bytes": [1]}, tmp_path), "index.json", "bytes=[1]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    refused(lambda: read_json(tmp_path / "deep.json", "delete it"), "deep.json", "too deeply")


def test_texts_of_a_database_that_are_damaged(tmp_path: Path) -> None:
    texts = {"image_id": ["0", "1"], "uri": ["0", "1"]}
    made = write_database(tmp_path / "db", lambda _: (np.ones((2, 4), np.float32), texts), 1, 4)
    file = tmp_path / "db/metadata/00000.parquet"
    table = pq.read_table(file)
    damaged = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"\xff\xfe"))
    pq.write_table(table.set_column(table.column_names.index("uri"), "uri", damaged), file)
    refused(lambda: RetrievalDatabase.open(made.path).metadata([0]), "00000.parquet", "rebuild the database")


def test_columns_of_other_projects_that_are_nested() -> None:
    table = to_our_columns(pa.table({"url": [{"a": 1}], "key": ["7"], "image_path": [["x"]]}))
    assert table["uri"].to_pylist() == [""] and table["image_id"].to_pylist() == ["7"]
    refused(lambda: to_our_columns(pa.table({"url": [b"\xff"]})), "column url", "expected texts in UTF-8")


def test_a_section_of_a_database() -> None:
    known = {"source": {"target": "x"}}
    for path in (1000.0, {"a": 1}, None):
        refused(lambda path=path: check_database({**known, "path": path}), f"got {path!r}", "path of a folder")
    given = {"config": "configs/database/emoji.yaml", "overrides": ["database=null"], "source": None, "output": None}
    args = argparse.Namespace(**given, batch_size=None, ray=None)
    refused(lambda: list(build_command(args)), "database has no 'path'")
    refused(lambda: load_embedder({"a": 1}), "embedder: ", "'target'")


def test_a_list_in_the_place_of_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("model: {params: {a: 1}}\n")
    for setting in ("model.params=[]", "model=[]"):
        refused(lambda setting=setting: read_config([tmp_path / "good.yaml"], [setting]), "good.yaml", "a list")


def test_names_of_networks() -> None:
    refused(lambda: load_embedder(embedder_config("=b")), "'=b'", "give the folder of a model")


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "index.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a folder has .*; move it away: '.*index.json'"):
        write_json(tmp_path / "index.json", {})
    made = write_database(tmp_path / "db", lambda _: (np.ones((2, 4), np.float32), {"image_id": ["0", "1"]}), 1, 4)
    (made.path / "index/index.json").mkdir(parents=True)
    refused(lambda: NeighbourIndex.open(made), "index.json is a folder", "move it away")


def test_a_folder_that_cannot_be_made() -> None:
    def make() -> None:
        with new_folder(Path("/")):
            pass

    refused(make, "folder /")


def test_what_a_library_says_is_one_printable_line() -> None:
    assert in_one_line(OSError("do not know\n what: \x0f")) == "do not know what: "


def test_a_zip_whose_list_lies_in_another_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.ckpt", {"w": torch.zeros(3)})
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    at = data.find(b"PK\x06\x07")  # where its 64-bit list of contents is; torch writes one
    assert at > 0
    data[at + 16 : at + 20] = struct.pack("<I", 7)  # the number of files that the archive is spread over
    (tmp_path / "a.ckpt").write_bytes(data)
    refused(lambda: read_weights(tmp_path / "a.ckpt"), "a.ckpt", "not a complete checkpoint")


def test_a_zip_of_something_else_is_said(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("a.txt", b"x")
    assert "a.txt" in (instead_of_weights(tmp_path / "x.ckpt") or "")
