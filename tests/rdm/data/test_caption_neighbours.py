"""Training with the neighbours of captions: their table, the share of images that look at them, and resuming."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import ProjectionEmbedder, contents, write_clip, write_pictures
from PIL import Image
from toy import rarm_config, rdm_config

import main
from ldm.checkpoint import read_weights
from ldm.config import write_config
from ldm.util import instantiate_from_config
from rdm.data import QueryDataset, RetrievalDataModule
from rdm.data.query_dataset import Drawn
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.neighbours import build as module
from rdm.retrieval.neighbours.build import build_neighbour_table, prepare_neighbour_table
from rdm.retrieval.neighbours.table import NeighbourTable

WORDS = ("red apple", "a cat", "green house", "violin", "big blue bus")


class Counting(ProjectionEmbedder):
    """Counts the texts it embeds; stops after `limit`."""

    seen, limit = 0, 10**9

    def texts(self, texts: list[str]) -> torch.Tensor:
        if self.seen + len(texts) > self.limit:
            raise KeyboardInterrupt
        self.seen += len(texts)
        return super().texts(texts)


def write_captioned(folder: Path, count: int, seed: int = 0) -> dict[str, Any]:
    """Writes pictures with a caption beside each, some of them equal, and returns the config of the data set."""
    source = write_pictures(folder, count, seed=seed)
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        file.with_suffix(".txt").write_text(f"{WORDS[number % 5]} {'xyz'[number % 3]}", encoding="utf-8")
    return source


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    return write_captioned(tmp_path / "pictures", 30)


@pytest.fixture
def database(tmp_path: Path, source: dict[str, Any]) -> RetrievalDatabase:
    return build_database(tmp_path / "db", source, ProjectionEmbedder(), progress=False)


def build(database: RetrievalDatabase, images: Any, path: Path, embedder: Any = None, **options: Any) -> NeighbourTable:
    index, options = NeighbourIndex.open(database), {"query": "caption", "progress": False, **options}
    return build_neighbour_table(path, images, embedder or ProjectionEmbedder(), database, index, **options)


def unit(vectors: Any) -> np.ndarray:
    return np.asarray(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)


def nearest_to_captions(database: RetrievalDatabase, images: Any, near_duplicate: float) -> np.ndarray:
    """All rows by similarity to each caption, ``[images, N]``, with -1 behind those that are not left out."""
    names, embedder = database.column("image_id").to_pylist(), ProjectionEmbedder()
    items = [images[number] for number in range(len(images))]
    rows = unit(database.embeddings(np.arange(len(database))))
    by_text = unit(embedder.texts([item["caption"] for item in items])) @ rows.T
    alike = unit(embedder.images(torch.stack([item["image"] for item in items]))) @ rows.T
    out = (alike >= near_duplicate) | (np.array([item["id"] for item in items])[:, None] == np.array(names))
    order = np.argsort(np.where(out, np.inf, -by_text), axis=1, kind="stable")
    return np.where(np.take_along_axis(out, order, 1), -1, order)


@pytest.mark.parametrize("near_duplicate", [2.0, 0.6])
def test_neighbours_are_those_of_the_caption_without_copies_of_the_picture(
    tmp_path: Path, database: RetrievalDatabase, source: dict[str, Any], near_duplicate: float
) -> None:
    images, embedder = instantiate_from_config(source), Counting()
    exact = nearest_to_captions(database, images, near_duplicate)[:, :6]
    assert exact.min() >= 0
    table = build(database, images, tmp_path / "table", embedder, k=6, near_duplicate=near_duplicate)
    np.testing.assert_array_equal(table.rows, exact)
    assert embedder.seen == 30
    assert table.card["query"] == "caption" and len(table.card["captions"]) == 64
    by_picture = build(database, images, tmp_path / "own", k=6, near_duplicate=near_duplicate, query="picture")
    assert (by_picture.rows != table.rows).any()
    # What is said of tables by pictures is what was said before there were others.
    assert set(by_picture.card) == set(table.card) - {"query", "captions"}
    # Of equal captions, texts leave out nothing but each picture's own copies.
    assert {images[0]["caption"], images[15]["caption"]} == {"red apple x"}
    if near_duplicate > 1:
        kept = [[row for row in table.rows[number] if row not in (0, 15)] for number in (0, 15)]
        assert kept[0][:5] == kept[1][:5]


def test_a_copy_of_the_picture_is_left_out_and_a_row_like_the_text_is_not(tmp_path: Path) -> None:
    source = write_captioned(tmp_path / "pictures", 12)
    root = Path(source["params"]["root"])
    (root / "class9").mkdir()
    Image.open(root / "class0/000.png").save(root / "class9/copy.png")
    (root / "class9/copy.txt").write_text("another text", encoding="utf-8")
    database = build_database(tmp_path / "db", source, ProjectionEmbedder(), progress=False)
    images = instantiate_from_config(source)
    table = build(database, images, tmp_path / "table", k=11)
    names = database.column("image_id").to_pylist()
    first, copy = names.index("class0/000.png"), names.index("class9/copy.png")
    for number in (first, copy):  # line i is of row i: the data set is the source of the database
        assert sorted(table.rows[number]) == sorted(set(range(13)) - {first, copy})
    with pytest.raises(ValueError, match=r"class0/000\.png' has 11 .*k=12"):
        build(database, images, tmp_path / "more", k=12)

    class AsText(ProjectionEmbedder):
        """A text that names a picture has its vector."""

        def texts(self, texts: list[str]) -> torch.Tensor:
            return self.images(torch.stack([images[int(text)]["image"] for text in texts]))

    for number, name in enumerate(names):
        (root / name).with_suffix(".txt").write_text(str((number + 1) % 13), encoding="utf-8")
    exactly = build(database, images, tmp_path / "exactly", AsText(), k=3)
    assert exactly.rows[:11, 0].tolist() == list(range(1, 12))
    assert 0 not in exactly.rows[12]  # the text of the copy is like its original, which is left out


def test_a_stopped_search_continues_to_the_same_bytes(
    tmp_path: Path, database: RetrievalDatabase, source: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 4)
    images = instantiate_from_config(source)
    build(database, images, tmp_path / "whole", k=3)
    stopped, rest = Counting(), Counting()
    stopped.limit = 11
    with pytest.raises(KeyboardInterrupt):
        build(database, images, tmp_path / "parts", stopped, k=3)
    build(database, images, tmp_path / "parts", rest, k=3)
    assert (stopped.seen, rest.seen) == (8, 22)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    stopped.seen = 0  # what was begun by captions is not gone on with by pictures
    with pytest.raises(KeyboardInterrupt):
        build(database, images, tmp_path / "mixed", stopped, k=3)
    build(database, images, tmp_path / "mixed", k=3, query="picture")
    build(database, images, tmp_path / "own", k=3, query="picture")
    assert contents(tmp_path / "mixed") == contents(tmp_path / "own")


def test_prepare_makes_again_what_other_captions_or_pictures_made(
    tmp_path: Path, database: RetrievalDatabase, source: dict[str, Any]
) -> None:
    images, index, path = instantiate_from_config(source), NeighbourIndex.open(database), tmp_path / "table"

    def prepare(query: str) -> int:
        options: dict[str, Any] = {"k": 4, "query": query, "progress": False}
        table = prepare_neighbour_table(path, images, ProjectionEmbedder(), database, index, **options)
        assert table.card.get("query", "picture") == query
        return (path / "neighbours.npy").stat().st_ino

    first = prepare("caption")
    assert prepare("caption") == first
    (Path(source["params"]["root"]) / images.names[3]).with_suffix(".txt").write_text("a new text", encoding="utf-8")
    second = prepare("caption")
    assert second != first and prepare("caption") == second
    third = prepare("picture")
    assert third != second and prepare("picture") == third
    assert set(json.loads((path / "neighbours.json").read_text())) == {
        "format", "images", "image_ids", "k", "patches_per_side", "database", "database_rows", "embedder", "leave_out",
        "sha256",
    }  # fmt: skip
    assert prepare("caption") != third


def test_a_picture_without_a_caption_keeps_its_own_neighbours(
    tmp_path: Path, database: RetrievalDatabase, source: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    images, embedder = instantiate_from_config(source), Counting()
    by_caption = build(database, images, tmp_path / "captions", k=6)
    by_picture = build(database, images, tmp_path / "own", k=6, query="picture")
    place = images.names.index("class1/011.png")
    assert (by_caption.rows[place] != by_picture.rows[place]).any()
    (Path(source["params"]["root"]) / "class1/011.txt").write_text(" \n", encoding="utf-8")
    table = build(database, images, tmp_path / "table", embedder, k=6)
    expected = by_caption.rows.copy()
    expected[place] = by_picture.rows[place]
    np.testing.assert_array_equal(table.rows, expected)
    assert embedder.seen == 29 and table.card["captions"] != by_caption.card["captions"]
    assert "1, such as 'class1/011.png'" in caplog.text


def test_what_cannot_be_asked_for_is_refused_in_one_line(
    tmp_path: Path, database: RetrievalDatabase, source: dict[str, Any]
) -> None:
    images = instantiate_from_config(source)
    with pytest.raises(ValueError, match="patches_per_side=2.*captions"):
        build(database, images, tmp_path / "table", k=3, patches_per_side=2)
    with pytest.raises(ValueError, match="query='text'.*'picture' or 'caption'"):
        build(database, images, tmp_path / "table", k=3, query="text")
    for file in Path(source["params"]["root"]).rglob("*.txt"):
        file.write_text(" \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^[^\n]*none of 30[^\n]*class0/000\.png[^\n]*captions[^\n]*$"):
        build(database, images, tmp_path / "table", k=3)
    assert not (tmp_path / "table").exists()
    own = build(database, images, tmp_path / "own", k=3, query="picture")
    with pytest.raises(ValueError, match="give captions"):
        _ = QueryDataset(images, database, own, 2)[Drawn(4, by_caption=True)]


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    clip = write_clip(tmp_path / "clip")
    return {
        "batch_size": 10,
        "embedder": {"target": "ldm.modules.encoders.modules.OpenClipEmbedder", "params": {"model": clip}},
        "database": {"path": str(tmp_path / "db"), "source": write_pictures(tmp_path / "all", 40)},
        "train": write_captioned(tmp_path / "train", 60, seed=1),
        "validation": write_captioned(tmp_path / "validation", 12, seed=2),
        "k": 2,
        "stored_k": 6,
    }


def read(loader: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Ids and neighbours of one epoch, one after the other."""
    lines = [zip(batch["id"], batch["neighbour_rows"].tolist(), strict=True) for batch in loader]
    return [(name, tuple(rows)) for batch in lines for name, rows in batch]


def test_the_share_is_what_it_says_and_drawn_anew_in_each_epoch(config: dict[str, Any]) -> None:
    data = RetrievalDataModule(**config, caption_share=0.3)
    data.prepare_data()
    data.setup("fit")
    own, captions = data.table("train").rows[:, :2], data.table("train-captions").rows[:, :2]
    differ = np.flatnonzero((own != captions).any(axis=1))
    assert len(differ) > 50
    loader, names, drawn = data.train_dataloader(), data.datasets["train"].images.names, []
    for epoch in range(40):
        loader.sampler.set_epoch(epoch)
        found = {names.index(name): rows for name, rows in read(loader)}
        assert sorted(found) == list(range(60))
        assert all(rows in (tuple(own[i]), tuple(captions[i])) for i, rows in found.items())
        drawn.append([found[i] == tuple(captions[i]) for i in differ])
    share = np.mean(drawn, axis=0)
    assert np.mean(drawn) == pytest.approx(0.3, abs=4 * (0.21 / np.size(drawn)) ** 0.5)
    assert share.min() > 0 and share.max() < 0.7  # no picture always, none never
    assert len({tuple(epoch) for epoch in drawn}) == 40
    (batch,) = [b for b in loader if names[int(differ[0])] in b["id"]]
    for rows, vectors in zip(batch["neighbour_rows"], batch["neighbours"], strict=True):
        np.testing.assert_array_equal(vectors.numpy(), data.database.embeddings(rows.numpy()))


def test_the_share_leaves_all_else_as_it_is(config: dict[str, Any], tmp_path: Path) -> None:
    plain = RetrievalDataModule(**config)
    plain.prepare_data()
    made = contents(tmp_path / "db")
    assert not any("captions" in name for name in made)
    before = [read(loader) for loader in (plain.train_dataloader(), plain.val_dataloader())]
    shared = RetrievalDataModule(**config, caption_share=0.5)
    shared.prepare_data()
    assert {name: made[name] for name in made} == {
        name: data for name, data in contents(tmp_path / "db").items() if "train-captions" not in name
    }
    after = [read(loader) for loader in (shared.train_dataloader(), shared.val_dataloader())]
    assert after[1] == before[1] and after[0] != before[0]
    assert [name for name, _ in after[0]] == [name for name, _ in before[0]]  # the order is that of the seed
    always = RetrievalDataModule(**config, caption_share=1)
    names, rows = plain.datasets["train"].images.names, shared.table("train-captions").rows
    assert all(found == tuple(rows[names.index(name), :2]) for name, found in read(always.train_dataloader()))
    assert shared.datasets["train"][5]["neighbour_rows"].tolist() == plain.table("train").rows[5, :2].tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_draws_the_same_when_it_continues(config: dict[str, Any], num_workers: int) -> None:
    def loader() -> Any:
        data = RetrievalDataModule(**config, caption_share=0.5, num_workers=num_workers)
        data.prepare_data()
        return data.train_dataloader()

    whole = loader()
    first = read(whole)
    whole.sampler.set_epoch(1)
    second = read(whole)
    assert dict(first) != dict(second)
    begun = loader()
    begun.sampler.set_epoch(1)
    stream = iter(begun)
    got = read([next(stream), next(stream)])
    rest = loader()
    rest.load_state_dict(begun.state_dict())
    assert got + read(rest) == second


@pytest.mark.parametrize(("kind", "num_workers"), [(rdm_config, 0), (rdm_config, 1), (rarm_config, 0)])
def test_a_stopped_run_goes_on_with_equal_weights(kind: Any, num_workers: int, tmp_path: Path) -> None:
    config = kind(tmp_path)
    config["data"]["params"] |= {"caption_share": 0.5, "num_workers": num_workers, "batch_size": 8}
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    config["lightning"] = {"trainer": trainer, "checkpoint": {"every_n_train_steps": 3}}
    write_config(tmp_path / "run.yaml", config)

    def train(name: str, *words: str, steps: int) -> None:
        begin = [] if "--resume" in words else ["-b", str(tmp_path / "run.yaml"), "-p", str(tmp_path / name)]
        main.train(main.parse(["-t", "--no-test", *begin, *words, f"lightning.trainer.max_steps={steps}"]))

    def losses(name: str) -> list[tuple[str, str]]:
        rows = [row for file in (tmp_path / name).glob("metrics*.csv") for row in csv.DictReader(file.open())]
        return sorted((row["step"], row["train/loss"]) for row in rows if row.get("train/loss"))

    train("whole", steps=7)  # of five steps to an epoch
    train("parts", steps=3)
    train("parts", "--resume", str(tmp_path / "parts"), steps=7)
    expected, got = (read_weights(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "parts"))
    assert [name for name, value in expected.items() if not torch.equal(got[name], value)] == []
    assert losses("parts") == losses("whole") and len(losses("whole")) == 7
    train("plain", "data.params.caption_share=0", steps=7)
    plain = read_weights(tmp_path / "plain" / "checkpoints" / "last.ckpt")
    assert any(not torch.equal(plain[name], value) for name, value in expected.items())  # it saw other neighbours


def test_wrong_shares_are_refused(config: dict[str, Any]) -> None:
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"caption_share={share}"):
            RetrievalDataModule(**config, caption_share=share)
    with pytest.raises(ValueError, match="patches_per_side=3.*captions"):
        RetrievalDataModule(**config, caption_share=0.5, patches_per_side=3)
    target = "rdm.data.RetrievalDataModule"
    with pytest.raises(ValueError, match="'caption_shar'.*'caption_share'"):
        instantiate_from_config({"target": target, "params": {**config, "caption_shar": 0.5}})
    with pytest.raises(ValueError, match="'num_worker'.*'num_workers'"):
        instantiate_from_config({"target": target, "params": {**config, "num_worker": 1}})
    data = instantiate_from_config({"target": target, "params": {**config, "num_workers": 1, "seed": 4}})
    assert (data.num_workers, data.seed, data.caption_share) == (1, 4, 0.0)
