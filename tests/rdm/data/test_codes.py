"""Tables of codes: made once, gone on with when killed, made again for another first stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import write_pictures
from small_models import VQ, randomise

from ldm.data import picture_table
from ldm.data.picture_table import PicturesWithValues
from ldm.models.autoencoder import VQModel
from ldm.util import instantiate_from_config
from rdm.data.codes import CodedDataModule, CodeTable, prepare_code_table


@pytest.fixture
def stage() -> VQModel:
    model = instantiate_from_config(VQ)
    randomise(model)
    return model.eval()


def with_codes(images: Any, table: CodeTable) -> PicturesWithValues:
    return PicturesWithValues(images, table, "codes", torch.int64)


def test_codes_that_were_half_made_are_gone_on_with(
    stage: VQModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = instantiate_from_config(write_pictures(tmp_path / "pictures", 11))
    monkeypatch.setattr(picture_table, "BATCH", 4)
    whole = prepare_code_table(tmp_path / "whole", images, stage, progress=False)
    made, encode = [], stage.encode

    def until_the_power_fails(pictures: torch.Tensor) -> torch.Tensor:
        made.append(len(pictures))
        if len(made) == 3:
            raise KeyboardInterrupt
        return encode(pictures)

    monkeypatch.setattr(stage, "encode", until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        prepare_code_table(tmp_path / "parts", images, stage, progress=False)
    assert not (tmp_path / "parts" / "codes.json").exists()
    with pytest.raises(FileNotFoundError, match=r"parts.*main\.py"):
        CodeTable.open(tmp_path / "parts")
    made.clear()
    parts = prepare_code_table(tmp_path / "parts", images, stage, progress=False)
    assert made == [3]
    assert np.array_equal(parts.values, whole.values) and parts.card == whole.card
    made.clear()
    assert prepare_code_table(tmp_path / "parts", images, stage, progress=False).card == whole.card
    assert not made
    assert sorted(file.name for file in (tmp_path / "parts").iterdir()) == ["codes.json", "codes.npy"]


def test_codes_of_another_first_stage_or_other_pictures_are_made_again(
    stage: VQModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = instantiate_from_config(write_pictures(tmp_path / "pictures", 5))
    first = np.array(prepare_code_table(tmp_path / "codes", images, stage, progress=False).values)
    others = instantiate_from_config(write_pictures(tmp_path / "pictures", 6))
    with pytest.raises(ValueError, match=f"{tmp_path / 'codes'}.* 5 .* 6"):
        with_codes(others, CodeTable.open(tmp_path / "codes"))
    assert len(prepare_code_table(tmp_path / "codes", others, stage, progress=False)) == 6
    assert "differ in images, image_ids" in caplog.text
    randomise(stage, seed=1)
    second = prepare_code_table(tmp_path / "codes", others, stage, progress=False)
    assert "differ in first_stage" in caplog.text
    assert not np.array_equal(second.values[:5], first)
    item = with_codes(others, second)[2]
    assert item["codes"].tolist() == second.values[2].tolist() and item["codes"].dtype == torch.int64
    (tmp_path / "codes" / "codes.npy").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"codes\.npy.*sha256"):
        CodeTable.open(tmp_path / "codes")


def test_wrong_sections_of_codes_are_named(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 2)
    database = {"path": "a", "source": pictures}
    params: dict[str, Any] = {"batch_size": 2, "embedder": {}, "database": database, "train": pictures}
    for wrong, message in (
        ({"path": "a"}, "codes.*'first_stage'"),
        ({"path": "a", "first_stage": {}, "stage": 1}, "codes.*'stage'"),
    ):
        with pytest.raises(ValueError, match=message):
            CodedDataModule(**params, codes=wrong)
    images = instantiate_from_config(pictures)
    with pytest.raises(ValueError, match="first_stage: got Identity"):
        prepare_code_table(tmp_path, images, torch.nn.Identity())
