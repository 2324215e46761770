"""The DataModule: batches are a function of seed and epoch, and a resumed run sees the ones it would have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.data import DataModule

EMOJI = Path(__file__).parents[3] / "data" / "emoji"


def emoji(split: str = "val", style: str = "noto") -> dict[str, Any]:
    """A dataset config."""
    return {
        "target": "ldm.data.ParquetImages",
        "params": {"files": str(EMOJI / f"{style}.parquet"), "size": 8, "split": split},
    }


def loader_of(**options: Any) -> Any:
    """The training loader of a DataModule over 139 pictures."""
    data = DataModule(**{"batch_size": 32, "train": emoji(), **options})
    data.setup("fit")
    return data.train_dataloader()


def ids(loader: Any) -> list[list[str]]:
    """The ids of each batch of one epoch."""
    return [batch["id"] for batch in loader]


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    loader = loader_of(seed=3)
    first = ids(loader)
    assert [len(batch) for batch in first] == [32] * 4 == [32] * len(loader)
    assert len({name for batch in first for name in batch}) == 128
    assert ids(loader_of(seed=3)) == first != ids(loader_of(seed=4))
    loader.sampler.set_epoch(1)
    second = ids(loader)
    assert second != first
    fresh = loader_of(seed=3, num_workers=1)
    fresh.sampler.set_epoch(1)
    assert ids(fresh) == second
    in_order = ids(loader_of(shuffle=False))
    assert in_order[0] == sorted(in_order[0])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_continues_after_the_batches_it_delivered(num_workers: int) -> None:
    loader = loader_of()
    whole, stream = ids(loader_of()), iter(loader)
    for _ in range(3):
        next(stream)
    state = loader.state_dict()
    assert state == {"epoch": 0, "samples": 96, "processes": 1}
    resumed = loader_of(num_workers=num_workers)
    resumed.load_state_dict(state)
    assert ids(resumed) == whole[3:]
    assert resumed.state_dict() == {"epoch": 0, "samples": 128, "processes": 1}
    following = loader_of()
    following.load_state_dict(resumed.state_dict())
    following.sampler.set_epoch(0)  # Lightning names the old epoch once more while it restarts
    resumed.sampler.set_epoch(1)
    assert ids(following) == ids(resumed) != whole


class Recorder(pl.LightningModule):
    """Learns one number and notes every picture that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[str]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        self.seen.append(batch["id"])
        return (self.weight - batch["image"].mean()) ** 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, max_steps: int, resume: Path | None = None) -> tuple[Recorder, pl.Trainer]:
    """Train for `max_steps` steps in all, four to an epoch, saving after every step."""
    saver = pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=[saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Recorder()
    trainer.fit(model, datamodule=DataModule(32, train=emoji(), seed=1), ckpt_path=resume)
    return model, trainer


def test_training_resumes_at_the_exact_batch(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    whole, _ = fit(tmp_path / "whole", 10)
    assert len(whole.seen) == 10 and whole.seen[:4] != whole.seen[4:8]
    for step in (3, 4, 6, 8):  # within and exactly at the end of an epoch
        resumed, trainer = fit(tmp_path / f"resumed-{step}", 10, tmp_path / "whole" / f"step={step}.ckpt")
        assert trainer.global_step == 10
        assert resumed.seen == whole.seen[step:]
        assert torch.equal(resumed.weight, whole.weight)
    assert not [warning for warning in recwarn if "not resumable" in str(warning.message)]


def test_evaluation_sets_are_read_whole_and_in_order() -> None:
    data = DataModule(100, validation=emoji(), test=emoji(style="fluent"))
    data.setup()
    names = [name for batch in ids(data.val_dataloader()) for name in batch]
    assert len(names) == 139 and names == sorted(names)
    assert next(iter(data.test_dataloader()))["id"][0].startswith("fluent/")
    assert DataModule(4, train=emoji()).val_dataloader() == []


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="batch_size >= 1"):
        DataModule(0, train=emoji())
    with pytest.raises(ValueError, match="got no dataset"):
        DataModule(4)
    with pytest.raises(ValueError, match="139 .*batch_size=140"):
        loader_of(batch_size=140)
    with pytest.raises(ValueError, match="train set.*validation"):
        DataModule(4, validation=emoji()).train_dataloader()
    misspelt = {"target": "ldm.data.ParquetImages", "params": {"files": "x", "sise": 8}}
    with pytest.raises(ValueError, match="sise"):
        DataModule(4, train=misspelt).setup("fit")
