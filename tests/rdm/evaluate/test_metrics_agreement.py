"""Metrics against torch-fidelity, torchmetrics, published definitions by brute force, and closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdm.evaluate import metrics
from rdm.evaluate.metrics import (
    Moments,
    clip_score,
    cmmd,
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)

pytestmark = pytest.mark.filterwarnings("ignore:Metric `", "ignore:std")  # torchmetrics on its memory, and on one split
K = 3


def features(seed: int, n: int, dim: int = 24, shift: float = 0.0) -> Tensor:
    """Vectors with lengths and correlations like those of a network."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99))
    return (torch.randn(n, dim, generator=generator) + shift) @ mixing * 0.3 + 1.0


@pytest.fixture(params=[7, 64, 2048])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Sizes of blocks: with a remainder, without one, and larger than all features."""
    monkeypatch.setattr(metrics, "BLOCK", request.param)
    return request.param


REAL, MADE = features(0, 150), features(1, 130, shift=0.3)


class Given(nn.Module):
    """A network for torchmetrics that returns its input."""

    num_features = REAL.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        return images


def fidelity(name: str, *given: Any, **options: Any) -> dict[str, float]:
    """The figures of torch-fidelity's function with this name."""
    module = pytest.importorskip(f"torch_fidelity.metric_{name.partition('_')[0]}")
    return getattr(module, name)(*given, **options)


@pytest.mark.usefixtures("block")
def test_frechet_distance_is_torch_fidelitys_and_torchmetrics() -> None:
    ours = frechet_distance(Moments.of(REAL), Moments.of(MADE))
    statistics = [fidelity("fid_features_to_statistics", rows) for rows in (REAL, MADE)]
    theirs = fidelity("fid_statistics_to_metric", *statistics, False)["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=1e-3) and ours > 1
    from torchmetrics.image.fid import FrechetInceptionDistance

    other = FrechetInceptionDistance(Given())
    other.update(REAL, real=True)
    other.update(MADE, real=False)
    assert ours == pytest.approx(float(other.compute()), rel=1e-3)


def test_kernel_distance_is_torch_fidelitys_with_the_same_subsets() -> None:
    options = {"kid_subsets": 20, "kid_subset_size": 50, "rng_seed": 2020, "verbose": False}
    theirs = fidelity("kid_features_to_metric", REAL, MADE, **options)
    ours = kernel_distance(REAL, MADE, np.random.RandomState(2020), subsets=20, size=50)
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)
    from torchmetrics.image.kid import KernelInceptionDistance

    other = KernelInceptionDistance(Given(), subsets=1, subset_size=130)
    other.update(REAL[:130], real=True)
    other.update(MADE, real=False)
    whole = kernel_distance(REAL[:130], MADE, np.random.default_rng(0), subsets=1, size=130)
    assert whole.mean == pytest.approx(float(other.compute()[0]), rel=1e-3) and whole.std == 0


def test_inception_score_is_torch_fidelitys_with_the_same_order() -> None:
    theirs = fidelity("isc_features_to_metric", MADE, 10, True, 2020)
    ours = inception_score(MADE, np.random.RandomState(2020))
    assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    assert ours.std == pytest.approx(theirs["inception_score_std"], rel=1e-3)
    from torchmetrics.image.inception import InceptionScore

    other = InceptionScore(Given(), splits=1)
    other.update(MADE)
    whole = inception_score(MADE, np.random.default_rng(0), splits=1)  # in any order
    assert whole.mean == pytest.approx(float(other.compute()[0]), rel=1e-3)
    certain = 1e3 * F.one_hot(torch.arange(60) % 6).float()  # six classes, all alike and beyond doubt
    assert inception_score(certain, np.random.default_rng(0), splits=1).mean == pytest.approx(6.0)


@pytest.mark.usefixtures("block")
def test_precision_and_recall_are_torch_fidelitys() -> None:
    options = {"prc_neighborhood": K, "prc_batch_size": 64, "save_cpu_ram": True, "verbose": False}
    theirs = fidelity("prc_features_to_metric", MADE, REAL, **options)
    ours = precision_recall(REAL, MADE, k=K)
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-3)
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-3)
    assert 0.2 < ours.precision < 1 and 0.2 < ours.recall < 1 and ours.precision != ours.recall


@pytest.mark.usefixtures("block")
def test_precision_recall_density_and_coverage_by_their_definitions() -> None:
    """Naeem et al. 2020, table of definitions, written out with all distances at once."""
    within = np.sort(np.linalg.norm(REAL[:, None] - REAL[None], axis=2), axis=1)[:, K]  # place 0 is the row itself
    made_within = np.sort(np.linalg.norm(MADE[:, None] - MADE[None], axis=2), axis=1)[:, K]
    between = np.linalg.norm(REAL[:, None] - MADE[None], axis=2)
    found = precision_recall(REAL, MADE, k=K)
    assert found.precision == pytest.approx((between <= within[:, None]).any(0).mean())
    assert found.recall == pytest.approx((between <= made_within[None]).any(1).mean())
    thick = density_coverage(REAL, MADE, k=K)
    assert thick.density == pytest.approx((between <= within[:, None]).sum(0).mean() / K)
    assert thick.coverage == pytest.approx((between.min(1) <= within).mean())


@pytest.mark.usefixtures("block")
def test_sets_that_are_equal_and_sets_far_apart() -> None:
    assert precision_recall(REAL, REAL) == (1.0, 1.0) and density_coverage(REAL, REAL).coverage == 1.0
    assert precision_recall(REAL, REAL + 1e3) == (0.0, 0.0) and density_coverage(REAL, REAL + 1e3) == (0.0, 0.0)
    assert cmmd(REAL, REAL) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(Moments.of(REAL), Moments.of(REAL)) == pytest.approx(0, abs=1e-9)
    assert density_coverage(REAL, features(5, 150)).density == pytest.approx(1.0, abs=0.15)  # as they are made alike


def test_exact_copies_lie_in_each_others_balls() -> None:
    """If each picture exists four times, all radii are 0, and only copies lie in a ball."""
    few = features(3, 20, dim=64) * 30
    copies = few.repeat(4, 1)
    assert precision_recall(copies, copies[torch.randperm(80)]) == (1.0, 1.0)
    assert precision_recall(copies, (few * 1.001).repeat(4, 1)) == (0.0, 0.0)
    assert density_coverage(copies, few, k=3) == (pytest.approx(4 / 3), 1.0)


@pytest.mark.usefixtures("block")
def test_cmmd_by_its_definition() -> None:
    x, y = F.normalize(REAL.double(), dim=1), F.normalize(MADE.double(), dim=1)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-((a[:, None] - b[None]).square().sum(2)) / (2 * 10**2)).exp().mean()

    expected = 1000 * float(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert cmmd(REAL, MADE) == pytest.approx(expected, rel=1e-6) and expected > 0
    assert cmmd(5 * REAL, MADE) == pytest.approx(expected, rel=1e-5)  # length counts for nothing
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert cmmd(one, other) == pytest.approx(2000 * (1 - np.exp(-2 / 200)))


def test_clip_score_is_the_cosine() -> None:
    images, texts = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [-2.0, 0.0]])
    assert clip_score(images, texts).tolist() == pytest.approx([0.96, -1.0])


@pytest.mark.usefixtures("block")
def test_features_in_a_file_give_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "real.npy", REAL.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "real.npy", mmap_mode="c"))
    assert precision_recall(mapped, MADE) == precision_recall(REAL, MADE)
    assert cmmd(mapped, MADE) == cmmd(REAL, MADE)


def test_too_few_pictures_are_one_line() -> None:
    few, draw = REAL[:3], np.random.default_rng(0)
    with pytest.raises(ValueError, match="3 .*k=3"):
        precision_recall(REAL, few)
    with pytest.raises(ValueError, match="3 .*k=5"):
        density_coverage(few, MADE)
    with pytest.raises(ValueError, match="4 .*2 to 3"):
        kernel_distance(few, MADE, draw, size=4)
    with pytest.raises(ValueError, match="3 .*10"):
        inception_score(few, draw)
