"""Sources of pictures and their features on disk: equal for every kind of file, and after an interruption."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from drawing import draw, model_samples
from pictures import contents, write_clip, write_pictures
from torch import Tensor

from ldm.data import ParquetImages
from ldm.pictures import image_grid, save_png
from ldm.util import instantiate_from_config
from rdm.evaluate import extract as extraction
from rdm.evaluate.extract import extract
from rdm.evaluate.features import FeatureNetwork, feature_network
from rdm.evaluate.sources import PictureFiles, class_balance, read_captions
from rdm.loading import Loaded, load
from rdm.sampling import ways

OPTIONS = {"k": 2, "seed": 3, "top_m": 0.5, "weighted": False, "steps": 1, "scale": 1.0}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "BATCH", 4)


@pytest.fixture
def network(tmp_path: Path) -> FeatureNetwork:
    return feature_network(write_clip(tmp_path / "clip"))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    write_pictures(tmp_path / "pictures", 10)
    return str(tmp_path / "pictures")


class Ending(PictureFiles):
    """Pictures whose reading is interrupted after two batches."""

    def batches(self, start: int, size: int) -> Iterator[Tensor]:
        for number, images in enumerate(super().batches(start, size)):
            if number == 2:
                raise KeyboardInterrupt
            yield images


def test_features_are_those_of_each_picture(network: FeatureNetwork, folder: str, tmp_path: Path) -> None:
    source = PictureFiles(folder)
    (found,) = extract(source, [network], tmp_path / "cache")
    images = torch.stack([source.dataset[place]["image"] for place in range(10)])
    assert torch.allclose(found.features, network.features(images)[0], atol=1e-5) and found.logits is None
    assert source.about["size"] == 8 and source.about["classes"] == {"count": 2, "smallest": 5, "largest": 5}


def test_an_ended_extraction_goes_on_and_ends_in_the_same_bytes(
    network: FeatureNetwork, folder: str, tmp_path: Path
) -> None:
    extract(PictureFiles(folder), [network], tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        extract(Ending(folder), [network], tmp_path / "parts")
    (plan,) = (tmp_path / "parts").glob("*/build.json")
    assert json.loads(plan.read_text())["done"] == 8
    seen: list[int] = []

    def see(images: Tensor) -> tuple[Tensor, None]:
        seen.append(len(images))
        return network.features(images)[0], None

    counting = FeatureNetwork(network.name, network.fingerprint, network.preprocessing, see, texts=network.texts)
    extract(PictureFiles(folder), [counting], tmp_path / "parts")
    assert seen == [2] and contents(tmp_path / "parts") == contents(tmp_path / "whole")
    extract(PictureFiles(folder), [counting], tmp_path / "parts")
    assert seen == [2]


def test_several_networks_share_one_pass(network: FeatureNetwork, folder: str, tmp_path: Path) -> None:
    """Also if one of them is ahead of the other."""
    other = feature_network(write_clip(tmp_path / "other", seed=1))
    with pytest.raises(KeyboardInterrupt):
        extract(Ending(folder), [network], tmp_path / "cache")
    first, second = extract(PictureFiles(folder), [network, other], tmp_path / "cache")
    alone = [extract(PictureFiles(folder), [one], tmp_path / "alone")[0] for one in (network, other)]
    assert torch.equal(first.features, alone[0].features) and torch.equal(second.features, alone[1].features)


def test_a_damaged_array_is_refused(network: FeatureNetwork, folder: str, tmp_path: Path) -> None:
    extract(PictureFiles(folder), [network], tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*/features.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ValueError, match="features.npy"):
        extract(PictureFiles(folder), [network], tmp_path / "cache")


def test_features_that_are_not_finite_are_refused(folder: str, tmp_path: Path) -> None:
    def see(images: Tensor) -> tuple[Tensor, None]:
        return torch.full((len(images), 2), torch.nan), None

    with pytest.raises(ValueError, match="broken .* picture 0"):
        extract(PictureFiles(folder), [FeatureNetwork("broken", "0", "none", see)], tmp_path / "cache")


def test_folder_parquet_and_tar_are_one_source(folder: str, tmp_path: Path) -> None:
    files = sorted(Path(folder).rglob("*.png"))
    rows = [{"image": {"bytes": file.read_bytes()}, "name": file.stem} for file in files]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pictures.parquet")
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        for file in files:
            member = tarfile.TarInfo(f"{file.parent.name}-{file.name}")
            member.size = file.stat().st_size
            archive.addfile(member, io.BytesIO(file.read_bytes()))
    sources = [PictureFiles(folder), *(PictureFiles(str(tmp_path / f"pictures.{end}")) for end in ("parquet", "tar"))]
    assert len({source.fingerprint for source in sources}) == 1
    assert sources[1].captions == [file.stem for file in files]
    assert PictureFiles(folder, size=4).fingerprint != sources[0].fingerprint  # the size is part of it
    half = PictureFiles(folder, n=5)
    assert half.rows == [0, 2, 4, 6, 9] and half.about["of"] == 10 and half.fingerprint != sources[0].fingerprint


def test_pictures_that_cannot_be_had(folder: str) -> None:
    with pytest.raises(ValueError, match="10 .*n=11"):
        PictureFiles(folder, n=11)
    Path(folder, "class0", "004.png").write_bytes(b"no picture")
    source = PictureFiles(folder)
    with pytest.raises(ValueError, match="max_broken=0.*004.png"):
        list(source.batches(0, 4))
    assert class_balance(["a", "b", "a"]) == {"count": 2, "smallest": 1, "largest": 2}


def test_samples_are_those_of_the_scripts_and_of_their_files(loaded: Loaded, tmp_path: Path) -> None:
    source = model_samples(loaded, 5, **OPTIONS)
    images = torch.cat(list(source.batches(0, 4)))
    given = {key: value for key, value in OPTIONS.items() if key in ("k", "top_m", "weighted", "seed")}
    expected = draw(ways.popular, loaded, 5, **given, steps=1, scale=1.0, copy_threshold=None).images
    assert (images - expected).abs().max() <= 1 / 255 + 1e-6 and images.std() > 0.05
    assert torch.equal(torch.cat(list(source.batches(4, 4))), images[4:])  # from any batch on
    for number, image in enumerate(expected):
        save_png(image_grid({"": image[None]}, gap=0), tmp_path / "files" / f"{number}.png")
    written = torch.cat(list(PictureFiles(str(tmp_path / "files")).batches(0, 4)))
    assert torch.equal(images, written)


def test_captions_become_prompts(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": b""}, "name": f"thing {number}"} for number in range(10)]
    file = tmp_path / "named.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    images = ParquetImages(str(file), 1)
    assert read_captions(images, "", 3) == ["thing 0", "thing 4", "thing 9"]
    assert len(read_captions(images, "", 50)) == 10
    without = instantiate_from_config(write_pictures(tmp_path / "pictures", 4))
    with pytest.raises(ValueError, match="the folder"):
        read_captions(without, "the folder", 3)


def test_samples_of_texts(loaded: Loaded) -> None:
    prompts = ["white flag", "pirate flag"]
    source = model_samples(loaded, 3, prompts, **OPTIONS, tokens="both")
    assert source.captions == [*prompts, prompts[0]] and source.about["asked"]["way"] == "text"
    expected = draw(
        ways.texts, loaded, source.captions, k=2, seed=3, tokens="both", steps=1, scale=1.0, copy_threshold=None
    )
    found = torch.cat(list(source.batches(0, 2)))
    assert np.abs((found - expected.images).numpy()).max() <= 1 / 255 + 1e-6
    changes: list[dict[str, Any]] = [{"seed": 4}, {"steps": 2}, {"k": 3}, {"compile": True}]
    others = [model_samples(loaded, 3, prompts, **{**OPTIONS, **new}) for new in changes]
    assert len({source.fingerprint for source in [source, *others]}) == 5


def test_samples_may_be_the_best_of_several(loaded: Loaded) -> None:
    """They are those of the scripts, from any batch on; ``best_of=1`` is the same as no option."""
    prompts, options = ["white flag", "pirate flag"], OPTIONS | {"best_of": 3, "seed": 8}
    given = {"k": 2, "seed": 8, "steps": 1, "scale": 1.0, "best_of": 3, "copy_threshold": None}
    popular = {"top_m": OPTIONS["top_m"], "weighted": OPTIONS["weighted"]}
    for source, expected in (
        (model_samples(loaded, 3, prompts, **options), draw(ways.texts, loaded, [*prompts, prompts[0]], **given)),
        (model_samples(loaded, 3, **options), draw(ways.popular, loaded, 3, **given, **popular)),
    ):
        found = torch.cat(list(source.batches(0, 2)))
        assert np.abs((found - expected.images).numpy()).max() <= 1 / 255 + 1e-6
        assert torch.equal(torch.cat(list(source.batches(2, 2))), found[2:])
        assert source.about["settings"]["best_of"] == 3 and expected.seeds != [8, 9, 10]
    one, plain = (model_samples(loaded, 3, prompts, **OPTIONS, **each) for each in ({"best_of": 1}, {}))
    assert one.about == plain.about and one.fingerprint == plain.fingerprint != source.fingerprint
    assert plain.about["settings"]["best_of"] == 1


def test_samples_are_others_where_rows_were_removed(loaded: Loaded, tmp_path: Path) -> None:
    other = load(str(loaded.path), str(shutil.copytree(loaded.retriever.database.path, tmp_path / "database")))
    here, there = (model_samples(model, 1, ["white flag"], **OPTIONS) for model in (loaded, other))
    assert here.fingerprint == there.fingerprint  # wherever the database lies
    (gone,) = other.retriever(there.queries, 1).rows
    other.retriever.database.remove(gone)
    again = model_samples(other, 1, ["white flag"], **OPTIONS)
    assert again.fingerprint != here.fingerprint and again.about["sha256"] != here.about["sha256"]
    assert gone in loaded.retriever(here.queries, 2).rows and gone not in other.retriever(again.queries, 2).rows
