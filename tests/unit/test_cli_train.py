"""The flags of `segworker train`: what they become, and what is refused before any Ray starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from segworker import cli
from segworker.cli_train import make_plan, parser
from segworker.train.split import VALIDATE
from tests.unit.test_fit import scene_and_truth


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train")
    scene_and_truth(path)
    return path


def flags(folder: Path, *more: str) -> list[str]:
    truth, out = str(folder / "truth" / "a.tif"), str(folder / "out")
    return [str(folder / "a.tif"), "--truth", truth, "--model", "nuclei", "--output", out, "--window", "64", *more]


def test_flags_become_a_plan(folder: Path) -> None:
    plan = make_plan(
        parser().parse_args(
            flags(
                folder,
                "--init",
                "nuclei",
                "--alpha",
                "mask=2,loss_box_reg=0.5",
                "--seed",
                "7",
                "--iterations",
                "9",
                "--schedule",
                "step",
                "--upright",
                "--block",
                "128",
                "--patience",
                "2",
                "--device",
                "cpu",
            )
        )
    )
    assert (plan.train.seed, plan.train.iterations, plan.train.schedule) == (7, 9, "step")
    assert plan.balance.alphas == (("mask", 2.0), ("loss_box_reg", 0.5))
    assert (plan.windows.size_px, plan.windows.turn, plan.patience) == (64, False, 2)
    assert (plan.split.kind, plan.init, plan.init_content) == ("block", "nuclei", None)
    assert any(part.side == VALIDATE for part in plan.split.parts)
    assert Path(plan.output).is_absolute()


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--init", "nosuch"], 2, "--init names a model that bundles weights"),
        (["--alpha", "mask"], 2, "--alpha takes KEY=VALUE"),
        (["--alpha", "mask=x"], 2, "--alpha takes TERM=NUMBER"),
        (["--model", "nosuch"], 2, "unknown model"),
        (["--split", "scene"], 2, "split by block"),
        (["--block", "256"], 2, "at least two blocks"),
        (["--iterations", "0"], 2, "at least 1"),
        (["--validation", "2"], 2, "between 0 and 1"),
        (["--split-file", "nosuch.json"], 1, "nosuch.json"),
        (["--class-field"], 2, "expected one argument"),
        (["--value-range", "x"], 2, "--value-range"),
    ],
)
def test_what_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, message: str
) -> None:
    assert cli.main(["train", *flags(folder, *more)]) == code
    assert message in capsys.readouterr().err
