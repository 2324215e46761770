"""The judge: what it learns, what it is shown in training, and its export."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from concepts import NAMES, NETWORK, concept_configs, stubborn_judge, write_concepts
from small_models import DDCONFIG

from ldm.callbacks import LastStep
from ldm.checkpoint import write_weights
from ldm.config import write_config
from ldm.data import DataModule
from ldm.models.first_stage import load_first_stage
from ldm.util import instantiate_from_config
from rdm.models.judge import Judge, augment, load_judge, rank, share_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_concepts(tmp_path / "data" / "squares.parquet")
    return tmp_path / "data" / "squares.parquet"


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A tiny untrained first stage."""
    params = {"ddconfig": DDCONFIG | {"resolution": 16}, "n_embed": 16, "embed_dim": 3}
    config = {"target": "ldm.models.autoencoder.VQModelInterface", "params": params}
    write_weights(tmp_path / "stage" / "model.safetensors", instantiate_from_config(config).state_dict())
    write_config(tmp_path / "stage" / "config.yaml", {"model": config})
    return tmp_path / "stage"


def fit(judge: Judge, folder: Path, file: Path, steps: int, checkpoint: Path | None = None) -> pl.Trainer:
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        accelerator="cpu",
        logger=False,
        callbacks=[LastStep(folder / "run.ckpt")],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(judge, datamodule=DataModule(16, **concept_configs(file)), ckpt_path=checkpoint, weights_only=True)
    return trainer


def test_it_learns_to_tell_held_out_pictures_and_its_export_judges_alike(file: Path, tmp_path: Path) -> None:
    judge = Judge(6, **NETWORK, learning_rate=1e-2, warmup_steps=5, decay_steps=40)
    trainer = fit(judge, tmp_path, file, 80)
    assert trainer.callback_metrics["val/top1"] > 0.9 and trainer.callback_metrics["val/top5"] > 0.9
    loaded = load_judge(tmp_path / "judge")
    assert loaded.concepts == NAMES and list(loaded.concepts) == sorted(NAMES)
    assert loaded.data_configs == concept_configs(file)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    judge.eval()
    with torch.no_grad():
        assert torch.allclose(loaded(images), judge(images), atol=0.05)
        assert (loaded(images)[0] - loaded(images)[1]).abs().max() > 0.1
    assert load_judge(tmp_path).concepts == NAMES  # the run folder that it lies in


def test_a_run_in_two_parts_is_the_run_in_one(file: Path, stage: Path, tmp_path: Path) -> None:
    """Stopped after three steps and prolonged to six, with reconstructions, a run has equal weights."""

    def weights(steps: int, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        judge = Judge(6, **NETWORK, warmup_steps=1, decay_steps=1, first_stage=str(stage), reconstructed=0.5)
        fit(judge, tmp_path, file, steps, checkpoint)
        assert judge._reconstructions
        return {name: weight.clone() for name, weight in judge.state_dict().items()}

    whole, half = weights(6), weights(3)
    assert any(not torch.equal(whole[name], half[name]) for name in whole)
    weights(3)
    resumed = weights(6, tmp_path / "run.ckpt")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_some_pictures_are_shown_as_reconstructions_every_other_time(stage: Path) -> None:
    judge = Judge(6, **NETWORK, first_stage=str(stage), reconstructed=0.4)
    ids = [f"style/{number}" for number in range(40)]
    images = torch.rand(40, 3, 16, 16) * 2 - 1
    model: Any = load_first_stage(stage).model
    with torch.no_grad():
        expected = model.decode(model.encode(images)).clamp(-1, 1)
    ever, times = [share_of(key) < 0.4 for key in ids], torch.zeros(40)
    for seed in range(30):
        shown = judge.with_reconstructions(images, ids, torch.Generator().manual_seed(seed))
        changed = (shown != images).flatten(1).any(1)
        assert torch.allclose(shown[changed], expected[changed], atol=1e-3)
        assert torch.equal(shown[~changed], images[~changed])
        times += changed
    assert (times > 0).tolist() == ever and 8 <= sum(ever) <= 24
    assert 0.35 < times[ever].mean() / 30 < 0.65
    assert not any(name.startswith("_stage") for name in judge.state_dict())
    none = Judge(6, **NETWORK, reconstructed=0.4)  # without a first stage
    assert torch.equal(none.with_reconstructions(images, ids, torch.Generator().manual_seed(0)), images)


def test_augmentation_depends_on_the_generator_alone_and_differs_by_image() -> None:
    images = (torch.rand(1, 3, 16, 16) * 2 - 1).expand(4, -1, -1, -1)
    first, again, other = (augment(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert all((first[0] - one).abs().mean() > 0.05 for one in first[1:])


def test_the_first_steps_see_pictures_of_half_the_side(file: Path, tmp_path: Path) -> None:
    judge, seen = Judge(6, **NETWORK, coarse_steps=2), []
    judge.network.register_forward_pre_hook(lambda _, inputs: seen.append((judge.training, inputs[0].shape[-1])))
    fit(judge, tmp_path, file, 4)
    assert [side for training, side in seen if training] == [8, 8, 16, 16]
    assert seen[-1] == (False, 16)  # the validation at the end


def test_pictures_of_another_size_are_scaled() -> None:
    judge = Judge(6, **NETWORK).eval()
    small, large = torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 40, 40) * 2 - 1
    with torch.no_grad():
        for images in (small, large):
            scaled = F.interpolate(images, (16, 16), mode="bilinear", antialias=True)
            assert torch.equal(judge(images), judge(scaled))


def test_the_shipped_config_has_few_weights() -> None:
    judge = Judge(1566, size=64)
    assert sum(parameter.numel() for parameter in judge.parameters()) < 6e6
    assert judge(torch.zeros(2, 3, 64, 64)).shape == (2, 1566)


def test_rank_counts_what_stands_before_the_best_right_class() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 3)
    assert rank(logits, torch.tensor([[0], [2], [3]])).tolist() == [0, 2, 3]
    assert rank(logits, torch.tensor([[3, 1], [2, 3], [0, 3]])).tolist() == [1, 2, 0]


def test_errors_name_what_is_wrong(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"classes: got 5, expected 6"):
        fit(Judge(5, **NETWORK), tmp_path, file, 1)
    with pytest.raises(ValueError, match=r"depths: got 2 stages, expected 1"):
        Judge(6, widths=[8], depths=[1, 1])
    with pytest.raises(ValueError, match=r"reconstructed: got 1.5"):
        Judge(6, **NETWORK, reconstructed=1.5)
    with pytest.raises(FileNotFoundError, match=r"no judge at .*nowhere; train one with .*configs/judge/emoji.yaml"):
        load_judge(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"emoji-vq-f4 holds a ldm.models.autoencoder.VQModel, expected"):
        load_judge(ROOT / "models/first_stage/emoji-vq-f4")
    judge = load_judge(stubborn_judge(tmp_path / "judge", file, "abcdef"))
    with pytest.raises(ValueError, match=r"the concept 'zebra', expected one of the judge's 6"):
        judge.targets(["a", "zebra"])
    other = Judge(6, **NETWORK)
    other.concepts = {**NAMES, "z": "zebra"}
    with pytest.raises(ValueError, match=r"other concepts than the checkpoint"):
        other.on_load_checkpoint({"concepts": NAMES})
