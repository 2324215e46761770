"""Training neighbours whose outlines agree with those of the picture."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outlined import write_drawings
from pictures import ProjectionEmbedder, write_clip
from small_models import VQ, randomise

from ldm.checkpoint import write_weights
from ldm.util import instantiate_from_config
from rdm.data import RetrievalDataModule
from rdm.data.agreement import Agreement
from rdm.data.query_dataset import Drawn
from rdm.models.references import References
from rdm.retrieval.database.outlines import outline


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Eight shapes in two colours as rows, and the same in a third colour to train on; each sees the other seven."""
    stage = instantiate_from_config(VQ)
    randomise(stage, 0)
    weights = tmp_path / "stage.safetensors"
    write_weights(weights, stage.state_dict())
    with_weights = {"target": VQ["target"], "params": {**VQ["params"], "ckpt_path": str(weights)}}
    train = write_drawings(tmp_path / "train", ("red",))
    for file in sorted((tmp_path / "train").rglob("*.png")):
        file.with_suffix(".txt").write_text(f"a {file.stem}", encoding="utf-8")
    return {
        "batch_size": 4,
        "embedder": {
            "target": "ldm.modules.encoders.modules.OpenClipEmbedder",
            "params": {"model": write_clip(tmp_path / "clip")},
        },
        "database": {"path": str(tmp_path / "db"), "source": write_drawings(tmp_path / "rows", ("blue", "line"))},
        "train": train,
        "k": 2,
        "stored_k": 7,
        "near_duplicate": 2.0,
        "same_outline": 0.9,
        "references": {"first_stage": with_weights},
    }


def prepared(config: dict[str, Any], **options: Any) -> Any:
    data = RetrievalDataModule(**config, **options)
    data.prepare_data()
    data.prepare_further(
        data.database, [data.table(name).rows for name in data.table_names], ProjectionEmbedder(), data.image_size
    )
    data.setup("fit")
    return data.datasets["train"]


def test_a_table_says_how_much_the_outlines_agree(config: dict[str, Any]) -> None:
    dataset = prepared(config, agreement={}, caption_share=0.5)
    for table in (dataset.table, dataset.captions):
        assert table.agreement.shape == table.rows.shape == (8, 7)
        for number in range(len(dataset)):
            own = outline(dataset.images[number]["image"])
            rows, agreements = table.stored(number)
            found = [
                float(own @ outline(torch.from_numpy(p).permute(2, 0, 1) / 127.5 - 1))
                for p in dataset.database.patches(rows)
            ]
            np.testing.assert_allclose(agreements, found, atol=2e-3)
            assert agreements.max() < 0.9 and np.ptp(agreements) > 0.1
    # A removed row is no neighbour any more, and what is said of the others stays theirs.
    rows, agreements = dataset.table.stored(3)
    dataset.database.remove(rows[[1, 4]])
    left, theirs = dataset.table.stored(3)
    assert left.tolist() == np.delete(rows, [1, 4]).tolist()
    assert theirs.tolist() == np.delete(agreements, [1, 4]).tolist()


def test_neighbours_are_drawn_from_those_that_agree_most(config: dict[str, Any]) -> None:
    dataset = prepared(config, agreement={"share": 1.0, "draw_from": 3, "least": -1.0})
    for number in (0, 5):
        rows, agreements = dataset.table.stored(number)
        best = rows[np.argsort(-agreements)[:3]].tolist()
        drawn = [dataset[Drawn(number, seed=seed)] for seed in range(300)]
        counts = Counter(row for item in drawn for row in item["neighbour_rows"].tolist())
        assert set(counts) == set(best)
        assert all(abs(count - 200) < 4 * (300 * 2 / 9) ** 0.5 for count in counts.values())
        for item in drawn[:5]:
            expected = dataset.further["references"].of_rows(item["neighbour_rows"].numpy())
            assert torch.equal(item["references"], expected) and expected.abs().amax() > 0
    # Without a seed, as in validation, they are the nearest ones.
    assert dataset[5]["neighbour_rows"].tolist() == dataset.table.rows[5, :2].tolist()


def test_a_neighbour_that_does_not_agree_shows_its_embedding_alone(config: dict[str, Any]) -> None:
    least = 0.3
    dataset = prepared(config, agreement={"share": 1.0, "least": least}, caption_share=1.0)
    seen = Counter[bool]()
    for number in range(len(dataset)):
        rows, agreements = dataset.captions.stored(number)
        known = dict(zip(rows.tolist(), agreements.tolist(), strict=True))
        item = dataset[Drawn(number, by_caption=True, seed=4)]
        for row, latents in zip(item["neighbour_rows"].tolist(), item["references"], strict=True):
            agrees = known[row] >= least
            assert bool(latents.abs().amax() > 0) == agrees
            seen[agrees] += 1
        # As many as can agree: none that does not agree is in the place of one that does.
        shown = sum(known[row] >= least for row in item["neighbour_rows"].tolist())
        assert shown == min(2, sum(each >= least for each in agreements))
    assert min(seen.values()) > 1 and len(seen) == 2


def test_an_absent_reference_stays_absent_under_noise() -> None:
    latents = torch.randn(6, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    latents[:, 1] = 0
    latents[5] = 0
    channels = References(p_drop=0, p_single=0, p_noise=1.0).trained(latents, torch.Generator().manual_seed(2))
    first, second, strength = channels.split([3, 3, 1], dim=1)
    assert not second.any() and not channels[5].any()
    assert first[:5].abs().amax((1, 2, 3)).min() > 0 and strength[:5].amin() > 0


def test_the_share_is_drawn_for_each_image_and_epoch(config: dict[str, Any]) -> None:
    def epoch(data: Any, number: int) -> list[list[int]]:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return [rows for batch in loader for rows in batch["neighbour_rows"].tolist()]

    options = {"share": 0.5, "draw_from": 2, "least": -1.0}
    dataset = prepared(config, agreement=options)
    data, nearest = RetrievalDataModule(**config, agreement=options), RetrievalDataModule(**config)
    assert epoch(data, 1) == epoch(RetrievalDataModule(**config, agreement=options), 1) != epoch(data, 2)
    by_agreement = 0
    for number in range(30):
        for got, plain in zip(epoch(data, number), epoch(nearest, number), strict=True):
            by_agreement += got != plain
    most = sum(
        set(dataset.table.rows[n, :2]) == set(dataset.table.stored(n)[0][np.argsort(-dataset.table.stored(n)[1])[:2]])
        for n in range(8)
    )
    assert most < 8 and 0.25 * 240 * (1 - most / 8) < by_agreement < 0.75 * 240


def test_a_table_without_agreement_is_built_again_only_if_it_is_asked_for(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    prepared(config)
    card = RetrievalDataModule(**config).table_path("train") / "neighbours.json"
    content = json.loads(card.read_text(encoding="utf-8"))
    card.write_text(json.dumps({key: content[key] for key in content if key != "agreement"}), encoding="utf-8")
    (card.parent / "agreement.npy").unlink()
    before = card.stat().st_mtime_ns
    prepared(config)
    assert card.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="does not say how much outlines agree"):
        RetrievalDataModule(**config).table("train").stored(0)
    prepared(config, agreement={})
    assert "differs in agreement; building it again" in caplog.text
    assert RetrievalDataModule(**config).table("train").agreement is not None
    (card.parent / "agreement.npy").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"agreement\.npy"):
        RetrievalDataModule(**config).table("train")


def test_what_cannot_be_meant_is_refused(config: dict[str, Any]) -> None:
    for name, value in {"share": 1.5, "draw_from": 0, "least": 2}.items():
        with pytest.raises(ValueError, match=f"agreement.{name}: got {value}"):
            Agreement(**{name: value})
    with pytest.raises(ValueError, match="agreement: unknown key 'leas'"):
        RetrievalDataModule(**config, agreement={"leas": 0.2})
    for without in ({"same_outline": None}, {"same_outline": 1.5}, {"patches_per_side": 2}):
        with pytest.raises(ValueError, match="agreement with same_outline"):
            RetrievalDataModule(**{**config, **without}, agreement={})
