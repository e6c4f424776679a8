"""Training on Ray Train: figures reach TensorBoard, a worker that dies is replaced, two workers learn as one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from segworker.engine.train import train
from segworker.errors import TrainingError
from segworker.train.loop import TrainConfig
from tests.unit import test_fit
from tests.unit.test_fit import Seeing, plan

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow]

CONFIG = TrainConfig(iterations=12, batch_size=2, warmup=2, log_every=4, checkpoint_every=4, precision="fp32")


class Mortal(Seeing):
    """Kills its process once, in the middle; the file remembers that it has."""

    def loss(self, images, targets):
        marker = Path(os.environ.get("TMPDIR", "/tmp"), f"segworker-mortal-{os.getuid()}")
        if self.calls == 6 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(images, targets)


def mortal() -> Mortal:
    return Mortal()


def test_figures_reach_tensorboard_and_the_store(tmp_path: Path) -> None:
    lines: list[str] = []
    record = train(plan(tmp_path, validate_every=6, train=CONFIG), tensorboard=True, log=lines.append)
    assert record["status"] == "done"
    assert lines == (tmp_path / "out" / "log.txt").read_text().splitlines()
    assert sum(line.startswith("step") and "lr" in line for line in lines) == 3
    assert record["validation"][-1]["step"] == 12
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert {"loss/mean", "weighted/mean", "total", "learning_rate", "validation/ap50"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss/mean")] == [4, 8, 12]


def test_a_worker_that_dies_is_replaced_and_goes_on(tmp_path: Path) -> None:
    marker = Path(os.environ.get("TMPDIR", "/tmp"), f"segworker-mortal-{os.getuid()}")
    marker.unlink(missing_ok=True)
    made = plan(tmp_path, train=CONFIG, model=f"{__name__}:mortal")
    record = train(made)
    assert marker.exists()
    marker.unlink()
    assert (record["status"], record["steps"]) == ("done", 12)
    whole = plan_of_the_same(tmp_path / "whole")
    train(whole)
    states = [
        torch.load(max((folder / "checkpoints").glob("*.pt")))["trainer"]["model"]
        for folder in (tmp_path / "out", tmp_path / "whole" / "out")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def plan_of_the_same(folder: Path) -> object:
    folder.mkdir()
    return plan(folder, train=CONFIG)


def test_a_loss_that_is_no_number_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="got nan for loss_mean at step 4"):
        train(plan(tmp_path, "spoiled", train=CONFIG))
    assert json.loads((tmp_path / "out" / "checkpoints" / "latest.json").read_text())["step"] == 4


def test_two_workers_keep_one_model(tmp_path: Path) -> None:
    record = train(plan(tmp_path, train=CONFIG, validate_every=6), workers=2)
    assert (record["workers"], record["steps"]) == (2, 12)
    assert test_fit.MODULE in record["model"]
