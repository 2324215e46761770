"""Loading a trained model with a database."""

import shutil
from pathlib import Path

from ldm.config import read_config, write_config
from rdm.loading import Loaded, load


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
