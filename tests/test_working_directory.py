"""Relative paths: shipped files are found from any working directory, and the user's own follow that directory."""

from pathlib import Path

import pytest
import yaml
from commands import Commands
from PIL import Image
from toy import ROOT

import rdm
from ldm.config import read_config
from ldm.data import ImageFolder, ParquetImages, WebDatasetImages
from ldm.files import located
from ldm.models.first_stage import load_first_stage
from rdm.loading import SHIPPED, find_checkpoint
from rdm.sampling.record import read_record

COMMANDS = {
    "database": ["scripts/build_database.py", "--source", "own", "--size", "16", "--output", "db"],
    "text": ["scripts/txt2img.py", "--prompt", "flag", "--database", "db", "--steps", "2", "--no_copy_check"],
    "again": ["scripts/sample.py", "--from-image", "outputs/txt2img/txt2img-000.png"],
    "edit": [
        "scripts/edit.py", "--image", "docs/gallery/inputs/cat.png", "--strength", "0.4", "--database", "db", "--steps",
        "2", "--no_copy_check",
    ],
    "training": [
        "main.py", "--base", "configs/first_stage/emoji-vq-f4.yaml", "-t", "data.params.batch_size=2",
        "lightning.trainer.max_steps=1", "lightning.trainer.limit_val_batches=0", "lightning.callbacks={}",
    ],
    "export": ["scripts/export_checkpoint.py", "models/first_stage/emoji-vq-f4", "--output", "out"],
}  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_working_directory_comes_first_the_project_second_and_the_cache_third(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert located("models/clip/emoji") == ROOT / "models/clip/emoji"
    assert located(SHIPPED / "none") == SHIPPED / "none" and located(ROOT / "none") == ROOT / "none"
    assert located("tests/toy.py") == Path("tests/toy.py")  # no folder of shipped files
    assert located("models/../tests/toy.py") == Path("models/../tests/toy.py")
    cache = elsewhere / "cache"
    monkeypatch.setenv("LDM_CACHE", str(cache))
    (cache / "models/clip/mine").mkdir(parents=True)
    assert located("models/clip/mine") == cache / "models/clip/mine"
    (elsewhere / "models/clip/emoji").mkdir(parents=True)
    assert located("models/clip/emoji") == Path("models/clip/emoji")
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at models/none in {elsewhere}, .*{ROOT} or .*{cache};"):
        find_checkpoint("models/none")
    weights = cache / "models/rdm/imagenet/model.ckpt"  # of which the project has the config alone
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert find_checkpoint("models/rdm/imagenet") == weights


def test_what_a_shipped_config_builds_is_built_in_the_project(elsewhere: Path) -> None:
    def path(*files: str, overrides: tuple[str, ...] = ()) -> str:
        return read_config(files, overrides)["data"]["params"]["database"]["path"]

    shipped, own = "configs/rdm.yaml", elsewhere / "own.yaml"
    own.write_text(yaml.dump({"data": {"params": {"database": {"path": "data/databases/own"}}}}))
    assert path(shipped) == str(ROOT / "data/databases/emoji") == path(str(ROOT / shipped))
    assert path(str(own)) == path(shipped, str(own)) == "data/databases/own"
    assert path(shipped, overrides=("data.params.database.path=data/databases/own",)) == "data/databases/own"
    assert read_config([shipped])["data"]["params"]["train"]["params"]["files"] == "data/emoji"
    (elsewhere / "data/databases/emoji").mkdir(parents=True)
    assert path(shipped) == "data/databases/emoji"
    (elsewhere / "configs").symlink_to(ROOT / "configs")  # a place like the checkout, with a database of its own
    assert path("configs/rarm.yaml") == "data/databases/emoji"
    with pytest.raises(FileNotFoundError, match="configs/rdm.yml; did you mean 'configs/rdm.yaml'"):
        read_config(["configs/rdm.yml"])


def test_data_sets_and_models_are_found(elsewhere: Path) -> None:
    images = ParquetImages("data/emoji", 16)
    assert len(images) == len(ParquetImages(str(ROOT / "data/emoji"), 16))
    assert len(ParquetImages("data/emoji/noto.p*", 16)) == len(ParquetImages("data/emoji/noto.parquet", 16))
    folder = ImageFolder("docs/gallery/inputs", 16)
    assert folder.uri(0) == "docs/gallery/inputs/cat.png" and folder[0]["image"].shape == (3, 16, 16)
    assert find_checkpoint("rarm") == ROOT / "models/rarm/emoji/model.safetensors"
    assert load_first_stage("models/first_stage/emoji-vq-f4").resolution == 64
    (elsewhere / "data/emoji").mkdir(parents=True)
    for missing, kind in (("data/emoji", ParquetImages), ("data/none", ImageFolder), ("none.tar", WebDatasetImages)):
        with pytest.raises(FileNotFoundError, match=f"{missing}.* in {elsewhere}"):
            kind(missing, 16)


def test_every_script_works_from_elsewhere(elsewhere: Path) -> None:
    (elsewhere / "own").mkdir()
    for number in range(6):
        Image.new("RGB", (16, 16), (40 * number, 90, 200 - 30 * number)).save(elsewhere / "own" / f"{number}.png")
    with Commands() as commands:
        for name, (script, *words) in COMMANDS.items():
            code, said = commands.run([str(ROOT / script), *words], elsewhere)
            assert code == 0, f"{name}: {said}"
    first, again = (elsewhere / f"outputs/{name}-000.png" for name in ("txt2img/txt2img", "sample/again"))
    assert first.read_bytes() == again.read_bytes()
    assert read_record(first)["checkpoint"] == str(SHIPPED / "model.safetensors")  # found wherever the project lies
    assert read_record(first)["database"] == "db"
    assert Image.open(elsewhere / "outputs/edit/edit-000.png").size == (64, 64)
    (run,) = (elsewhere / "logs").iterdir()
    assert (run / "checkpoints/last.ckpt").is_file() and (elsewhere / "out/model.safetensors").is_file()
    pipeline = rdm.load(database="db")
    assert pipeline.path == ROOT / SHIPPED / "model.safetensors" and len(pipeline.retriever.database) == 6
    assert {path.name for path in elsewhere.iterdir()} == {"own", "db", "outputs", "logs", "out"}
