"""What is taken of each picture: boxes are laws of the policy, and every row can be cut out again."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import SIZES, ProjectionEmbedder, bomb, contents, write_large
from PIL import Image

from ldm.data.decode import decode_image
from ldm.util import instantiate_from_config
from rdm.retrieval.builder.build import build_database, prepare_database
from rdm.retrieval.builder.forecast import Forecast, forecast
from rdm.retrieval.builder.plan import PLAN, new_plan
from rdm.retrieval.builder.work import Build, Work
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.patches.policy import Patches

QUIET = {"batch_size": 5, "shard_rows": 3, "progress": False}
RANDOM = {"policy": "random", "count": 3, "min_side": 14, "max_side": 30, "seed": 7}


def build(path: Path, source: dict[str, Any], patches: dict[str, Any] | None, **options: Any) -> RetrievalDatabase:
    return build_database(path, source, ProjectionEmbedder(), patches=patches, **{**QUIET, **options})


def test_random_squares_depend_on_the_picture_alone() -> None:
    policy, again = Patches(RANDOM), Patches(dict(RANDOM))
    ids = [f"{number}.png" for number in range(300)]
    first = {name: policy.of(name, 100, 60) for name in ids}
    assert first == {name: again.of(name, 100, 60) for name in reversed(ids)}
    boxes = np.array([box for found in first.values() for box, _ in found])
    assert boxes.shape == (900, 4)
    sides = boxes[:, 2] - boxes[:, 0]
    assert (sides == boxes[:, 3] - boxes[:, 1]).all()
    assert set(sides.tolist()) == set(range(14, 31))  # each side from least to most is drawn
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [100, 60]).all()
    assert boxes[:, 2].max() == 100 and boxes[:, 0].min() == 0 and boxes[:, 3].max() == 60
    np.testing.assert_allclose(boxes[:, 0].mean(), (100 - 22) / 2, rtol=0.06)  # uniform: four standard errors
    assert Patches({**RANDOM, "seed": 8}).of("1.png", 100, 60) != first["1.png"]
    assert policy.of("1.png", 13, 60) == []
    assert len(policy.of("1.png", 14, 14)) == 1  # there is one such square only
    assert policy.of("1.png", 100, 60) and Patches({**RANDOM, "min_picture": 61}).of("1.png", 100, 60) == []


@pytest.mark.parametrize(("side", "stride", "columns", "rows"), [(16, 0, 7, 4), (16, 12, 8, 5), (60, 1, 41, 1)])
def test_a_grid_covers_the_picture(side: int, stride: int, columns: int, rows: int) -> None:
    found = [box for box, _ in Patches({"policy": "grid", "side": side, "stride": stride}).of("a", 100, 60)]
    assert len(found) == len(set(found)) == rows * columns
    covered = np.zeros((60, 100), dtype=int)
    for x0, y0, x1, y1 in found:
        assert (x1 - x0, y1 - y0) == (side, side)
        covered[y0:y1, x0:x1] += 1
    assert covered.min() >= 1
    assert Patches({"policy": "grid", "side": 61}).of("a", 100, 60) == []


def test_annotated_boxes_of_three_forms_are_the_same_squares(tmp_path: Path) -> None:
    boxes = [
        ("b", 10, 20, 30, 25, "cat"),
        ("a", 2, 2, 8, 50, "dog"),
        ("b", 90, 5, 100, 12, "dog"),
        ("b", 1, 1, 3, 9, "owl"),
    ]
    columns = ("image_id", "x0", "y0", "x1", "y1", "class_id")
    table = pa.table({name: [box[place] for box in boxes] for place, name in enumerate(columns)})
    pq.write_table(table, tmp_path / "boxes.parquet")
    lines = [",".join(map(str, box)) for box in (columns, *boxes)]
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    parts = [f"{i},x,{c},1,{x0 / 100},{x1 / 100},{y0 / 60},{y1 / 60}" for i, x0, y0, x1, y1, c in boxes]
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax"
    (tmp_path / "open.csv").write_text("\n".join([header, *parts]) + "\n")
    coco = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}, {"id": 7, "name": "owl"}],
        "annotations": [
            {
                "image_id": "ab".index(i) + 1,
                "category_id": 5 + ("cat", "dog", "owl").index(c),
                "bbox": [x, y, u - x, v - y],
            }
            for i, x, y, u, v, c in boxes
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco), encoding="utf-8-sig")
    for name in ("boxes.parquet", "boxes.csv", "open.csv", "coco.json"):
        policy = Patches({"policy": "boxes", "file": str(tmp_path / name), "min_side": 4})
        asked = "train/{}.png" if name != "coco.json" else "{}.png"
        # 20 wide, 5 high: a square of 20 around its middle; at the right edge: moved in; 2 wide: left out.
        assert policy.of(asked.format("b"), 100, 60) == [((10, 12, 30, 32), "cat"), ((90, 4, 100, 14), "dog")], name
        assert policy.of(asked.format("a"), 100, 60) == [((0, 2, 48, 50), "dog")]
        assert policy.of("c.png", 100, 60) == []
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        Patches({"policy": "boxes", "file": str(tmp_path / "nothing.csv")})
    (tmp_path / "other.csv").write_text("picture,left\n1,2\n")
    with pytest.raises(ValueError, match="picture, left.*image_id, x0"):
        Patches({"policy": "boxes", "file": str(tmp_path / "other.csv")})


def test_wrong_policies_are_one_line() -> None:
    for config, said in [
        ({"policy": "wohle"}, "'wohle'.* whole, random, grid, boxes"),
        ({"policy": "random", "min_sid": 3}, "'min_sid'.*'min_side'"),
        ({"policy": "random", "count": 3}, "random .*'min_side'"),
        ({"policy": "grid", "side": 0}, "side=0.* 1"),
        ({"policy": "random", "min_side": 9, "max_side": 8}, "max_side=8.*min_side=9"),
        ({"policy": "grid", "side": "big"}, "side='big'"),
    ]:
        with pytest.raises(ValueError, match=said):
            Patches(config)


@pytest.mark.parametrize(
    "patches",
    [None, RANDOM, {"policy": "grid", "side": 12}, {"policy": "random", "count": 2, "min_side": 8, "max_side": 8}],
)
def test_every_row_can_be_cut_out_again(tmp_path: Path, patches: dict[str, Any] | None) -> None:
    source = write_large(tmp_path / "pictures")
    database = build(tmp_path / "db", source, patches)
    rows = database.metadata(np.arange(len(database)))
    expected = Patches(patches)
    assert [(row["item"], (row["x0"], row["y0"], row["x1"], row["y1"])) for row in rows] == [
        (item, tuple(box)) for item, size in enumerate(SIZES) for box, _ in expected.of(f"{item:03d}.png", *size)
    ]
    found = RetrievalDatabase.open(database.path).patches(np.arange(len(database)))
    for row, patch in zip(rows, found, strict=True):
        with Image.open(Path(source["params"]["root"]) / row["image_id"]) as picture:
            part = picture.crop((row["x0"], row["y0"], row["x1"], row["y1"]))
        if part.width == part.height:
            part = part if part.size == (8, 8) else part.resize((8, 8), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(patch, np.asarray(part))
        else:
            buffer = io.BytesIO()
            part.save(buffer, "PNG")
            whole = decode_image(buffer.getvalue(), 8)
            np.testing.assert_array_equal(
                patch, ((whole + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8)
            )
        assert row["sha256"] == hashlib.sha256(repr(patch.shape).encode() + patch.tobytes()).hexdigest()
    images = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 127.5 - 1
    vectors = ProjectionEmbedder().images(images).numpy()
    np.testing.assert_array_equal(database.embeddings(np.arange(len(rows))), vectors.astype(np.float16))


def test_a_source_that_grew_or_lost_pictures_is_still_understood(tmp_path: Path) -> None:
    source = write_large(tmp_path / "pictures")
    database = build(tmp_path / "db", source, RANDOM)
    before = database.patches(np.arange(len(database)))
    root = Path(source["params"]["root"])
    (root / "000.png").rename(root / "zzz.png")  # every later picture has another number now
    reopened, names = RetrievalDatabase.open(database.path), database.column("image_id").to_pylist()
    for row, name in enumerate(names):
        if name == "000.png":
            with pytest.raises(ValueError, match=r"000\.png.*no picture of that id.*restore the source"):
                reopened.patches([row])
        else:
            np.testing.assert_array_equal(reopened.patches([row])[0], before[row])


def test_what_cannot_be_read_is_listed_and_skipped_up_to_a_limit(tmp_path: Path) -> None:
    source = write_large(tmp_path / "pictures")
    root = Path(source["params"]["root"])
    (root / "001.png").write_bytes(b"not a picture")
    (root / "004.png").write_bytes((root / "004.png").read_bytes()[:500])
    (root / "005.png").write_bytes(bomb())
    with pytest.raises(ValueError, match=r"^3 .*max_broken=1.*unreadable\.json"):
        build(tmp_path / "db", source, RANDOM, max_broken=1, shard_rows=2)
    listed = json.loads((tmp_path / "db/unreadable.json").read_text())["unreadable"]
    assert [entry["item"] for entry in listed] == [1, 4, 5]
    plan = json.loads((tmp_path / "db/build.json").read_text())
    assert (plan["next"], [entry["item"] for entry in plan["unreadable"]]) == (4, [1])
    (tmp_path / "db/metadata/00000.parquet").write_bytes(b"damaged meanwhile, so that it is built again")
    database = build(tmp_path / "db", source, RANDOM, max_broken=3, shard_rows=2)  # the same build goes on
    listed = json.loads((tmp_path / "db/unreadable.json").read_text())["unreadable"]
    assert [(entry["item"], entry["uri"]) for entry in listed] == [(i, f"{root}/{i:03d}.png") for i in (1, 4, 5)]
    assert listed[0]["reason"].startswith("unreadable image: ") and "BytesIO" not in listed[0]["reason"]
    assert "an image of more than" in listed[2]["reason"] and "expected at most" in listed[2]["reason"]
    assert sorted(set(database.column("item").to_pylist())) == [0, 2, 6]  # picture 3 is narrower than a patch


def test_readers_change_no_byte(tmp_path: Path) -> None:
    source = write_large(tmp_path / "pictures", [(40, 30)] * 80)
    alone = build(tmp_path / "alone", source, RANDOM, workers=0, shard_rows=50)
    before = torch.get_rng_state()
    others = build(tmp_path / "others", source, RANDOM, workers=2, shard_rows=50)
    assert torch.equal(torch.get_rng_state(), before)
    assert contents(alone.path) == contents(others.path) and len(alone) == 240


def test_the_forecast_of_rows_and_bytes_is_near(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_large(tmp_path / "pictures", [(40, 30), (30, 40), (10, 10)] * 60)
    images, embedder = instantiate_from_config(source), ProjectionEmbedder(dim=512)
    patches = Patches(RANDOM)

    def forecast_of(items: Sequence[int], shard_rows: int) -> Forecast:
        work = Work(batch_size=5, shard_rows=shard_rows)
        plan = new_plan(source, images, patches, embedder, shard_rows, items=len(items))
        return forecast(Build(tmp_path / "db", PLAN, plan, images, items, patches, embedder, work), workers=0)

    said = forecast_of(range(180), 90)
    built = build_database(
        tmp_path / "db", source, embedder, patches=RANDOM, batch_size=5, shard_rows=90, progress=False
    )
    assert len(built) == 360 and abs(said.rows - 360) < 20
    written = sum(file.stat().st_size for file in built.path.rglob("*") if file.suffix in (".npy", ".parquet"))
    assert 0.8 < said.disk / written < 1.25
    assert said.memory > 2 * 180 * 512 * 2 and said.free > 0
    assert "about" in str(said) and "free on the disk" in str(said)
    forecast_of(np.broadcast_to(0, 10**12), 10**12)  # type: ignore[arg-type]  # an array of numbers will do
    assert "name another path" in caplog.text and "lower shard_rows, batch_size or workers" in caplog.text


def test_another_policy_is_another_database(tmp_path: Path) -> None:
    source, embedder = write_large(tmp_path / "pictures"), ProjectionEmbedder()
    built = build(tmp_path / "db", source, RANDOM)
    assert prepare_database(built.path, source, embedder, patches=RANDOM).fingerprint == built.fingerprint
    with pytest.raises(ValueError, match='"seed": 7.* got .*"policy": "whole".*; delete'):
        prepare_database(built.path, source, embedder)
    with pytest.raises(ValueError, match="7 images .* 0 .*unreadable, 7 "):
        build(tmp_path / "none", source, {"policy": "grid", "side": 500})


def test_cards_of_the_first_form_are_read(tmp_path: Path) -> None:
    source = write_large(tmp_path / "pictures")
    built = build(tmp_path / "db", source, None)
    card = json.loads((built.path / "database.json").read_text())
    del card["sources"]
    old = {**card, "source": source, "patches": {"policy": "whole"}}
    (built.path / "database.json").write_text(json.dumps(old))
    found = prepare_database(built.path, source, ProjectionEmbedder())
    assert found.fingerprint == built.fingerprint
    np.testing.assert_array_equal(found.patches([3])[0], built.patches([3])[0])
