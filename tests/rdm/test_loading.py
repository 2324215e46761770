"""Loading a trained model with a database."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import QUIET, ProjectionEmbedder, write_pictures
from PIL import Image
from toy import FLAGS, rdm_config, ship

from ldm.config import read_config, write_config
from rdm.loading import Loaded, load, with_database
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.index.search import read_card
from rdm.retrieval.neighbours.popularity import popularity
from rdm.retrieval.upkeep.add import NewPicture, add_pictures
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.samples import sample
from rdm.sampling.settings import Settings
from rdm.sampling.ways import texts


def test_with_another_database_the_models_own_pictures_are_not_needed(loaded: Loaded, tmp_path: Path) -> None:
    config = read_config([loaded.path.parent / "config.yaml"])
    config["data"]["params"]["database"]["path"] = str(tmp_path / "own")
    for part in (config["data"]["params"]["database"]["source"], config["data"]["params"]["train"]):
        part["params"] = {**part["params"], "files": str(tmp_path / "nowhere")}
    write_config(tmp_path / "config.yaml", config)
    shutil.copy(loaded.path, tmp_path)
    there = loaded.retriever.database
    other = load(str(tmp_path), str(there.path))
    assert other.retriever.database.fingerprint == there.fingerprint
    assert not (tmp_path / "own").exists()


def test_another_part_of_the_database_gives_what_loading_with_it_gives(loaded: Pipeline) -> None:
    rules = ["style=noto", "style=twemoji"]
    part, again = with_database(loaded, only=rules), load(str(loaded.path), only=rules)
    assert isinstance(part, Pipeline) and part.model is loaded.model
    assert part.retriever.embedder is loaded.retriever.embedder and part.retriever.index is loaded.retriever.index
    made, expected = (sample(each, texts(each, ["a flag"]), Settings(steps=2)) for each in (part, again))
    np.testing.assert_array_equal(made.images, expected.images)
    styles = part.retriever.database.values("style", made.request.retrieved.rows)
    assert set(styles.flat) <= {"noto", "twemoji"}
    assert loaded.retriever.rows is None


def test_another_database_gives_what_loading_with_it_gives(loaded: Pipeline, tmp_path: Path) -> None:
    source = {"target": "ldm.data.ParquetImages", "params": {**FLAGS, "files": FLAGS["files"][:2]}}
    build_database(tmp_path / "two", source, loaded.retriever.embedder, **QUIET)
    other, again = with_database(loaded, tmp_path / "two"), load(str(loaded.path), str(tmp_path / "two"))
    assert other.retriever.database.path == tmp_path / "two" and len(other.retriever.database) == 16
    for each in (other, again):
        assert each.retriever.outlines is None or each.retriever.outlines.database is each.retriever.database
    made, expected = (sample(each, texts(each, ["a flag"]), Settings(steps=2)) for each in (other, again))
    np.testing.assert_array_equal(made.images, expected.images)


def test_a_database_of_another_embedder_is_refused(loaded: Pipeline, tmp_path: Path) -> None:
    build_database(tmp_path / "db", write_pictures(tmp_path / "pictures", 5), ProjectionEmbedder(), **QUIET)
    with pytest.raises(ValueError, match=f"{tmp_path / 'db'} was made by embedder"):
        with_database(loaded, tmp_path / "db")
    with pytest.raises(FileNotFoundError, match="none"):
        with_database(loaded, tmp_path / "none")


def test_after_rows_were_added_loading_builds_the_index_and_the_table_again(tmp_path: Path) -> None:
    loaded = load(str(ship(tmp_path / "model", rdm_config(tmp_path))))
    path, embedder = loaded.retriever.database.path, loaded.retriever.embedder
    picture = Image.radial_gradient("L").convert("RGB")
    grown, (row,) = add_pictures(path, [NewPicture(picture, "CC0-1.0", "A. Uthor")], embedder)
    with pytest.raises(ValueError, match="index .* belongs to the database"):
        read_card(grown, path / "index")
    again = load(str(loaded.path))
    assert again.retriever.index.search(grown.embeddings([row]), 1).rows.tolist() == [[row]]
    assert popularity(again.retriever.database, 2).shape == (41,)
