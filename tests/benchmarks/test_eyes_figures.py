"""The counts of recognised pictures: which rows are taken, and what counts as recognised."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

pytest.importorskip("timm")

from benchmarks.eyes import classes, measure
from rdm.evaluate.features import FeatureNetwork


def test_only_names_of_classes_are_taken_and_counted(tmp_path: Path) -> None:
    known = classes()
    assert len(known) > 990 and known["zebra"] == 340 and known["daisy"] == 985
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, format="png")
    names = ["Zebra", "zebra", "zebra", "daisy", "no class"]
    cells = [{"bytes": data.getvalue(), "path": None}] * len(names)
    pq.write_table(pa.table({"name": names, "image": cells}), tmp_path / "a.parquet")
    logits = torch.zeros(1, 1000)
    logits[0, known["zebra"]], logits[0, known["daisy"]] = 2, 1
    network = FeatureNetwork("fixed", "", "", lambda x: (x.mean((2, 3)), logits), True)
    found = measure([tmp_path / "a.parquet"], network, 2)
    assert found == {"zebra": {"n": 2, "top1": 2, "top5": 2}, "daisy": {"n": 1, "top1": 0, "top5": 1}}
    blind = FeatureNetwork("blind", "", "", lambda x: (x.mean((2, 3)), None))
    with pytest.raises(ValueError, match="blind is no classifier"):
        measure([tmp_path / "a.parquet"], blind, 2)
