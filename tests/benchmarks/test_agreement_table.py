"""The comparison of the script's figures with those of others: the pair, the networks, the figures and the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torch_fidelity")

from benchmarks.agreement.networks import CLASSIFIER, classifier, emoji_clip
from benchmarks.agreement.pair import ROOT, SEED, Pair, pixels, write_pair
from benchmarks.agreement.table import Row, compared, flat, table
from benchmarks.agreement.theirs import Figure, definitions, figures, torchmetrics
from ldm.pictures import to_uint8
from rdm.evaluate import Moments, frechet_distance
from rdm.evaluate.features import feature_network
from rdm.evaluate.metrics import cmmd, density_coverage, inception_score, kernel_distance, precision_recall

N = 12
FLUENT, NOTO = ROOT / "data/emoji/fluent.parquet", ROOT / "data/emoji/noto.parquet"
TWO = {"real": torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).double()}
TWO["made"] = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).double() + 0.5


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("pair"), FLUENT, NOTO, N)


def test_the_pair_is_the_same_each_time_and_ordered_as_the_script_splits(pair: Pair, tmp_path: Path) -> None:
    again = write_pair(tmp_path, FLUENT, NOTO, N)
    assert torch.equal(pixels(pair.made, N), pixels(again.made, N))
    assert [file.name for file in sorted(pair.real.iterdir())][::11] == ["00000.png", "01565.png"]
    assert torch.equal(pixels(pair.ordered, N), pixels(pair.made, N)[np.random.default_rng(SEED).permutation(N)])
    with Image.open(sorted(pair.real.iterdir())[0]) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))
    with pytest.raises(ValueError, match="got 1566 pictures in .*noto.parquet, expected at least n=1567"):
        write_pair(tmp_path, NOTO, NOTO, 1567)


@pytest.mark.parametrize("kind", ["clip", "unit", "classifier"])
def test_all_figures_of_a_network_are_ours(
    pair: Pair, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the whole command compares, but with our functions called here: networks, features, figures."""
    monkeypatch.chdir(ROOT)
    file = tmp_path / "weights.safetensors"
    network = classifier(pixels(pair.real, N), file) if kind == "classifier" else emoji_clip(unit=kind == "unit")
    own = feature_network(network.name)
    (made, logits), (real, _) = (own.features(pixels(folder, N) / 127.5 - 1) for folder in (pair.made, pair.real))
    with torch.inference_mode():
        found = figures(pair, network)
    precision, thick = precision_recall(real, made), density_coverage(real, made)
    ours = {
        "frechet_distance": frechet_distance(Moments.of(real), Moments.of(made)),
        "kernel_distance": kernel_distance(real, made, np.random.default_rng(0), size=N)._asdict(),
        **precision._asdict(),
        **thick._asdict(),
        "cmmd": cmmd(real, made),
    }
    if logits is not None:
        ours["inception_score"] = inception_score(logits, np.random.default_rng(SEED))._asdict()
        assert ours["inception_score"]["mean"] > 1.05  # or agreement would say nothing
    rows = compared(network.words, ours, found)
    assert [row for row in rows if not row.within] == []
    assert len(rows) == len(found) == (11 if kind == "classifier" else 9)
    assert network.name == (f"{CLASSIFIER}:{file}" if kind == "classifier" else own.name)


def test_definitions_and_torchmetrics_of_made_up_features() -> None:
    real, made = TWO["real"], TWO["made"]
    thick, named = density_coverage(real, made), dict(definitions(real.numpy(), made.numpy()))
    assert named == pytest.approx({**thick._asdict(), "cmmd": cmmd(real, made)})
    assert 0 < named["coverage"] < 1
    distance, kernel = torchmetrics(real, made)
    assert distance.value == pytest.approx(frechet_distance(Moments.of(real), Moments.of(made)), rel=1e-6)
    whole = kernel_distance(real, made, np.random.default_rng(0), subsets=1, size=40)
    assert kernel.value == pytest.approx(whole.mean, rel=1e-6)


def test_a_figure_beyond_the_bound_and_one_that_is_no_number_are_off() -> None:
    def row(ours: float, theirs: float) -> Row:
        return Row("m", "f", ours, "they", theirs)

    assert row(1.0009, 1).within and not row(1.0011, 1).within
    assert row(2.0019, -2).relative == pytest.approx(2.00095) and row(0, 0).within
    assert not row(1e-9, 0).within and not row(float("nan"), 1).within and not row(1, float("nan")).within


def test_the_table_has_a_row_for_each_figure_that_both_have() -> None:
    ours = {"a": 1.0, "b": {"mean": 2.0, "std": 0.5}, "alone": 3.0}
    assert flat(ours) == {"a": 1.0, "b mean": 2.0, "b std": 0.5, "alone": 3.0}
    theirs = [Figure("a", "they", 1.25), Figure("b mean", "others", 2.0), Figure("c", "they", 1.0)]
    lines = table(compared("eyes", ours, theirs)).splitlines()
    assert lines[2:] == [
        "| a | eyes | 1 | 1.25 | they | 2.5e-01 | 2.0e-01 | **NO** |",
        "| b mean | eyes | 2 | 2 | others | 0.0e+00 | 0.0e+00 | yes |",
    ]
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")


def test_random_weights_are_the_same_each_time(pair: Pair, tmp_path: Path) -> None:
    shown = pixels(pair.real, N)
    classifier(shown, tmp_path / "a.safetensors")
    classifier(shown, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert torch.equal(to_uint8(shown / 127.5 - 1), shown)  # nothing is lost between the two forms of pictures
