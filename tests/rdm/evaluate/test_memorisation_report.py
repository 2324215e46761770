"""Memorisation: the search for nearest pictures, the figures, and the report of the command line."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import model_samples
from pictures import ProjectionEmbedder
from PIL import Image

from ldm.config import read_config, write_config
from ldm.files import file_hash
from ldm.pictures import save_png
from ldm.util import instantiate_from_config
from rdm.evaluate.memorisation import (
    KNOWN,
    THRESHOLDS,
    TRAINING,
    _as_pictures,
    captioned,
    figures,
    group_figures,
    probability_nearer,
    shares,
)
from rdm.evaluate.nearest import (
    EMBEDDER,
    PIXELS,
    Features,
    Nearest,
    Pictures,
    SampleFiles,
    blocks_of_rows,
    concatenate,
    nearest,
    pixel_vectors,
)
from rdm.evaluate.sources import read_captions
from rdm.loading import Loaded
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.retriever import Retriever

ROOT = Path(__file__).parents[3]
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loaded: Loaded, tmp_path: Path) -> Run:
    """Runs the report on the tiny model, or on another one; returns its output, or its error message."""

    def call(*words: object, model: Path = loaded.path) -> str:
        given = ["memorisation", model, "--outdir", tmp_path / "out", "--steps", 1, *words]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, given)])
        try:
            runpy.run_path(str(ROOT / "scripts" / "evaluate.py"), run_name="__main__")
        except SystemExit as end:
            assert end.code == 2
            complaint = capsys.readouterr().err
            assert "Traceback" not in complaint
            return complaint.splitlines()[-1]
        return capsys.readouterr().out

    return call


def write_rows(loaded: Loaded, rows: list[int], folder: Path) -> list[Path]:
    """Writes the pictures of rows as files."""
    files = [folder / f"{row:02d}.png" for row in rows]
    for patch, file in zip(loaded.retriever.database.patches(rows), files, strict=True):
        save_png(torch.from_numpy(patch).permute(2, 0, 1), file)
    return files


def unit_rows(loaded: Loaded) -> np.ndarray:
    """All rows of the database, of length one, [N, D] float64."""
    vectors = loaded.retriever.database.embeddings(np.arange(len(loaded.retriever.database))).astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_pixels_see_neither_brightness_nor_contrast() -> None:
    image = torch.rand(3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    flat, halves = torch.full((3, 20, 20), 0.3), torch.ones(3, 32, 32)
    halves[:, :, 16:] = -1
    images = [image, image * 0.5 + 0.2, -image, flat, halves, halves.flip(2)]
    cosines = np.stack([pixel_vectors([one])[0] for one in images])
    cosines = cosines @ cosines.T
    np.testing.assert_allclose(cosines[0, :3], [1, 1, -1], atol=1e-5)
    assert not cosines[3].any()  # one colour is like nothing, not even itself
    np.testing.assert_allclose([cosines[4, 4], cosines[4, 5]], [1, -1], atol=1e-5)
    cells = image.view(3, 16, 4, 16, 3).mean((2, 4)).flatten().double()
    expected = (cells - cells.mean()) / (cells - cells.mean()).norm()
    np.testing.assert_allclose(pixel_vectors([image])[0], expected, atol=1e-6)


def test_search_by_blocks_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)

    def some(n: int, ids: list[str]) -> Pictures:
        widths = {EMBEDDER: 5, PIXELS: 3}
        vectors = {name: rng.normal(size=(n, width)).astype(np.float32) for name, width in widths.items()}
        vectors = {name: v / np.linalg.norm(v, axis=1, keepdims=True) for name, v in vectors.items()}
        return Pictures(np.arange(n) + 100, ids, vectors)

    every = some(50, [f"picture {i // 2}" for i in range(50)])  # two patches of each
    groups = {"samples": some(7, [""] * 7), "real": Pictures(every.numbers[10:20], every.ids[10:20], {})}
    groups["real"].vectors.update({name: v[10:20] for name, v in every.vectors.items()})
    parts = [
        Pictures(every.numbers[s], every.ids[s], {name: v[s] for name, v in every.vectors.items()})
        for s in (slice(0, 13), slice(13, 14), slice(14, 50))
    ]
    found = nearest(groups, parts, {"real": 0.8})
    close = groups["real"].vectors[EMBEDDER] @ every.vectors[EMBEDDER].T >= 0.8
    assert close.sum() > 15  # beside the ten themselves
    for name, group in groups.items():
        for feature, queries in group.vectors.items():
            scores = queries.astype(np.float64) @ every.vectors[feature].T
            for i, own in enumerate(group.ids):
                scores[i, [own == other != "" for other in every.ids]] = -2
                scores[i, close[i] if name == "real" else []] = -2
            np.testing.assert_array_equal(found[name][feature].numbers, scores.argmax(1) + 100)
            np.testing.assert_allclose(found[name][feature].similarities, scores.max(1), atol=1e-6)
    again = concatenate(parts)
    assert again.ids == every.ids and np.array_equal(again.vectors[PIXELS], every.vectors[PIXELS])


def test_removed_rows_are_not_found(database: RetrievalDatabase) -> None:
    features = Features(Retriever(ProjectionEmbedder, database, lambda: NeighbourIndex.open(database)), 8)
    rows = Pictures(np.arange(19), [""] * 19, features.of_rows(np.arange(19)))
    for feature in (EMBEDDER, PIXELS):
        found = nearest({"rows": rows}, blocks_of_rows(features), {})["rows"][feature]
        assert found.numbers.tolist() == list(range(19)) and found.similarities == pytest.approx(1, abs=1e-5)
    database.remove([3, 4])
    found = nearest({"rows": rows}, blocks_of_rows(features), {})["rows"][PIXELS]
    kept = np.delete(np.arange(19), [3, 4])
    assert np.array_equal(found.numbers[kept], kept) and not {3, 4} & set(found.numbers)
    assert found.similarities[3] < 0.9


def test_shares_fall_and_figures_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(1)
    groups = {"mine": rng.beta(5, 1, 40), "held-out": rng.beta(4, 1, 60).round(1), "training": np.ones(5)}
    groups["copies"] = rng.beta(9, 1, 30)
    parts = list(shares(groups["mine"], [0, *THRESHOLDS, 1.1]).values())
    assert parts[0] == 1 and parts[-1] == 0 and all(a >= b for a, b in zip(parts, parts[1:], strict=False))
    told = group_figures(groups)
    assert told["mine"]["shares"]["0.9"] == np.mean(groups["mine"] >= 0.9) and told["mine"]["n"] == 40
    beyond = told["mine"]["beyond 95% of held-out"]
    assert beyond["threshold"] == pytest.approx(np.quantile(groups["held-out"], 0.95), abs=1e-4)
    assert beyond["share"] == np.mean(groups["mine"] >= beyond["threshold"])
    assert beyond["copies"] == pytest.approx(np.mean(groups["copies"] >= beyond["threshold"]), abs=1e-4)
    assert told["mine"]["beyond 95% of training"] == {"threshold": 1.0, "share": 0.0, "copies": 0.0}
    rounded = groups["mine"].round(1)
    pairs = rounded[:, None] - groups["held-out"]
    expected = np.mean(pairs > 0) + np.mean(pairs == 0) / 2
    assert probability_nearer(rounded, groups["held-out"]) == pytest.approx(expected) and np.any(pairs == 0)
    assert "nearer than training" in told["mine"] and "nearer than training" not in told["copies"]


def test_the_report_of_new_samples(run: Run, loaded: Loaded, tmp_path: Path) -> None:
    words = ("--ways", "popular", "captions", "--n", 5, "--rows", 3, "--n_real", 40)
    printed = run(*words)
    report = json.loads((tmp_path / "out/results.json").read_text())
    figures, protocol = report["figures"], report["protocol"]
    assert set(figures) == {"embedder", "pixels"}
    assert (
        f"pixels, median similarity: captions {figures['pixels']['training']['captions']['quantiles']['0.5']:.3f}"
        in printed
    )
    assert protocol["model"]["sha256"] == file_hash(loaded.path)
    assert protocol["database"]["fingerprint"] == loaded.retriever.database.fingerprint
    assert protocol["features"]["embedder"]["fingerprint"] == loaded.retriever.embedder.fingerprint
    made_by = protocol["samples"]["captions"]["made_by"]
    assert made_by["settings"]["steps"] == 1 and made_by["asked"]["k"] == 2
    captions = read_captions(instantiate_from_config(loaded.data.dataset_configs["validation"]), "", 5)
    of_captions = model_samples(loaded, 5, captions, k=2, seed=0, top_m=0.2, weighted=False).about["asked"]
    assert made_by["asked"] == of_captions and made_by["asked"]["way"] == "text"
    assert protocol["samples"]["popular"]["n"] == 5 and protocol["held-out"]["n"] == 40

    likeness = unit_rows(loaded) @ unit_rows(loaded).T - 2 * np.eye(40)  # all splits of the toy are its rows
    for name in ("database", "training"):
        told = figures["embedder"][name]
        assert told["training"]["quantiles"]["0.5"] == pytest.approx(np.median(likeness.max(1)), abs=2e-3)
        assert told["popular"]["n"] == 5 and told["captions"]["shares"]["0.5"] <= 1
    assert Image.open(tmp_path / "out/worst.png").size == (2 + 6 * 130, 2 + 3 * 144)
    assert Image.open(tmp_path / "out/memorisation.png").width > 500

    worst = report["worst"]["embedder"]
    scores = [pair["database"]["similarity"] for pair in worst]
    assert scores == sorted(scores, reverse=True) and len(worst) == 3
    image = SampleFiles([Path(worst[0]["sample"])], 16)[0]["image"]
    vector = loaded.retriever.embedder.images(image[None]).double().numpy()[0]
    cosines = unit_rows(loaded) @ vector / np.linalg.norm(vector)
    assert worst[0]["database"]["row"] == cosines.argmax() and scores[0] == pytest.approx(cosines.max(), abs=1e-3)
    metadata = loaded.retriever.database.metadata([worst[0]["database"]["row"]])[0]
    assert worst[0]["database"]["licence"] == metadata["licence"] != ""

    other = json.loads((tmp_path / "out/samples/popular/samples.json").read_text())
    files = sorted((tmp_path / "out/samples/popular").glob("*.png"))
    pixels = [file.read_bytes() for file in files]
    (tmp_path / "out/samples/popular/samples.json").write_text(json.dumps({**other, "done": 2}))
    for file in files[:2]:
        file.write_bytes(pixels[4])  # what is there is taken as it is, the rest is made again
    files[3].unlink()
    run(*words)
    assert [file.read_bytes() for file in files] == [pixels[4], pixels[4], *pixels[2:]]
    run(*words, "--only", "licence=MIT")  # another plan
    assert files[0].read_bytes() != pixels[4]


def test_samples_like_a_neighbour_that_they_were_shown_are_counted_apart() -> None:
    known = {name: np.linspace(0, 0.8, 50) for name in ("held-out", "training", "copies")}
    groups = {"mine": np.array([0.1, 0.9, 0.95, 0.2]), **known}
    told = group_figures(groups, {"mine": np.array([True, True, False, False])})["mine"]["beyond 95% of held-out"]
    assert told["share"] == 0.5 and told["neighbours"] == 0.25
    assert "neighbours" not in group_figures(groups)["mine"]["beyond 95% of held-out"]


def beyond_of(report: dict[str, Any], group: str) -> list[dict[str, float]]:
    """What a report says of the samples that are beyond, with the part that is like a neighbour they were shown."""
    found = [figures["database"][group]["beyond 95% of held-out"] for figures in report["figures"].values()]
    pictures = [figures["training"][group]["beyond 95% of held-out"] for figures in report["figures"].values()]
    assert all(0 <= each["neighbours"] <= each["share"] for each in (*found, *pictures))
    return found


def test_a_training_picture_that_a_sample_was_shown_is_counted_apart(loaded: Loaded) -> None:
    """The rows that a sample was shown are training pictures, too."""
    database, images = loaded.retriever.database, loaded.data.dataset_configs["train"]
    images = instantiate_from_config(images)
    names = [images.metadata(number)["id"] for number in range(len(images))]
    rows = {name: row for row, name in enumerate(database.column("image_id").to_pylist())}
    shown = {"mine": [{rows[names[3]], rows[names[0]]}, {rows[names[2]]}]}
    numbers = _as_pictures(shown, database, images)
    assert numbers == {"mine": [{0, 3}, {2}]}
    near = {"mine": {PIXELS: Nearest(np.array([3, 4]), np.array([0.99, 0.99], np.float32))}}
    known = {name: {PIXELS: Nearest(np.zeros(9, np.int64), np.linspace(0, 0.9, 9))} for name in KNOWN}
    told = figures({TRAINING: {**near, **known}}, {TRAINING: numbers})[PIXELS][TRAINING]["mine"]
    assert told["beyond 95% of held-out"]["share"] == 1.0 and told["beyond 95% of held-out"]["neighbours"] == 0.5


def test_pictures_made_already(run: Run, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(loaded, [7, 21, 30], tmp_path / "rows")
    assert "nearest in training by embedder, median similarity: images 1.000" in run(
        "--images", tmp_path / "rows", "--rows", 2
    )
    report = json.loads((tmp_path / "out/results.json").read_text())
    found = [pair["database"] for pair in report["worst"]["pixels"]]
    owners = set(loaded.retriever.database.values("sha256", np.array([7, 21, 30])))
    assert set(loaded.retriever.database.values("sha256", np.array([pair["row"] for pair in found]))) < owners
    assert [pair["similarity"] for pair in found] == [1.0, 1.0] and len({pair["row"] for pair in found}) == 2
    for feature in ("embedder", "pixels"):
        assert report["figures"][feature]["database"]["images"]["shares"]["0.999"] == 1
    assert report["figures"]["pixels"]["database"]["images"]["nearer than held-out"] > 0.5

    words = ["--n_samples", "2", "--steps", "1", "--save_neighbours", "--outdir", str(tmp_path / "made")]
    monkeypatch.setattr(sys, "argv", ["sample.py", "--ckpt", str(loaded.path), *words])
    runpy.run_path(str(ROOT / "scripts/sample.py"), run_name="__main__")
    run("--images", tmp_path / "made")  # of twelve files two are samples
    report = json.loads((tmp_path / "out/results.json").read_text())
    protocol, recorded = report["protocol"], beyond_of(report, "images")
    assert protocol["samples"]["images"]["n"] == 2
    assert protocol["samples"]["images"]["made_by"][0]["settings"]["steps"] == 1
    run("--n", 2)  # the same samples again, without the script
    assert beyond_of(json.loads((tmp_path / "out/results.json").read_text()), "popular") == recorded
    for i in range(2):
        ours, theirs = tmp_path / f"out/samples/popular/{i:06d}.png", tmp_path / f"made/sample-{i:03d}.png"
        assert np.array_equal(np.asarray(Image.open(ours)), np.asarray(Image.open(theirs)))


def test_small_pictures_are_enlarged_over_words() -> None:
    image = torch.linspace(-1, 1, 48).view(3, 4, 4)
    shown = captioned(image, "row, 0.9876")
    assert shown.shape == (3, 128 + 14, 128) and torch.equal(shown[:, 16:128:32, 5:128:32], image)
    assert 0 < float((shown[:, 128:] < 0).float().mean()) < 0.3
    assert captioned(torch.zeros(3, 200, 200), "").shape == (3, 214, 200)


def test_mistakes_are_answered_in_one_line(run: Run, loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    one = write_rows(loaded, [7], tmp_path / "one")[0]
    assert "got n=1" in run("--n", 1) and "got n=1" in run("--images", tmp_path / "one")
    assert f"{tmp_path}/none" in run("--images", tmp_path / "none")
    assert f"{tmp_path}/empty" in run("--images", tmp_path / "empty")
    (tmp_path / "one" / "broken.png").write_bytes(one.read_bytes()[:40])
    assert "broken.png" in run("--images", tmp_path / "one")
    assert "classes" in run("--ways", "classes")
    for missing, line in (
        ("data", "no 'data'"),
        ("train", "'train'"),
        ("validation", "data.params.validation"),
    ):
        config = read_config([loaded.path.parent / "config.yaml"])
        config.pop(missing, None)
        config.get("data", {}).get("params", {}).pop(missing, None)
        (tmp_path / missing).mkdir()
        write_config(tmp_path / missing / "config.yaml", config)
        shutil.copy(loaded.path, tmp_path / missing / "model.safetensors")
        assert line in run("--n", 2, model=tmp_path / missing)
    assert not (tmp_path / "out" / "results.json").exists()
