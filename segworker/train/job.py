"""A training job from files to a file: what `pipelines/train.py` calls."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from segworker.errors import ConfigError
from segworker.models.memory import keep_freed_memory
from segworker.models.protocol import choose_device
from segworker.models.registry import build_model, load_model
from segworker.models.weights import save_weights
from segworker.train.data import (
    CropConfig,
    CropSampler,
    Sample,
    choose_heldout,
    load_samples,
    read_heldout,
    write_heldout,
)
from segworker.train.evaluate import as_table, evaluate
from segworker.train.loop import TrainConfig, Trainer


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What to train on what."""

    data: Path
    "Folder with images/NAME.png and masks/NAME.png, one label for each instance."
    output: Path
    "The weights file to write, .safetensors."
    model: str = "nuclei"
    "A registered name or package.module:factory; the model must have a `loss`."
    heldout: Path | None = None
    "Names that are kept out of training and measured at the end; written with a fixed 15% where the file is absent."
    checkpoint: Path | None = None
    "Where the state of the run is kept; default: beside the output."
    resume: bool = False
    "Go on from the checkpoint."
    device: str = "auto"


def run_job(job: TrainJob, config: TrainConfig, *, log: Callable[[str], None] = print) -> Path:
    """Train, write the averaged weights, measure them on the held-out images, and return the weights file."""
    _check_output(job)
    keep_freed_memory()
    samples = load_samples(job.data)
    heldout = _heldout_names(job, samples)
    source = CropSampler([s for s in samples if s.name not in heldout], CropConfig(), seed=config.seed)
    torch.manual_seed(config.seed)
    model = build_model(job.model)
    if not isinstance(model, nn.Module) or not hasattr(model, "loss"):
        raise ConfigError(
            f"a trainable model is a torch module with a loss(), got {type(model).__name__} for {job.model}"
        )
    trainer = Trainer(model, source, config, device=str(choose_device(job.device)))
    checkpoint = job.checkpoint or job.output.with_suffix(".checkpoint.pt")
    if job.resume:
        trainer.resume(checkpoint)
    averaged = trainer.run(log=log, checkpoint=checkpoint)
    save_weights(
        averaged, job.output, metadata={"model": job.model, "iterations": str(trainer.step), "seed": str(config.seed)}
    )
    log(f"wrote {job.output} after {trainer.seconds / 3600:.2f} h of training")
    measured = [s for s in samples if s.name in heldout]
    if measured:
        scores = evaluate(averaged.to("cpu"), measured)  # type: ignore[arg-type]  # `build_model` has checked predict
        log(as_table(scores))
    return job.output


def measure_job(job: TrainJob, *, log: Callable[[str], None] = print) -> None:
    """Measure the weights at `job.output` on the held-out images and log the table."""
    if job.heldout is None:
        raise ConfigError("measuring needs the list of held-out images; give --heldout FILE")
    model = load_model(job.model, weights=job.output)
    log(as_table(evaluate(model, load_samples(job.data, names=read_heldout(job.heldout)))))


def _check_output(job: TrainJob) -> None:
    if job.output.suffix != ".safetensors":
        raise ConfigError(f"weights are written as .safetensors, got --output {job.output}; change its ending")
    job.output.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(job.output.parent, os.W_OK):
        raise ConfigError(f"--output must be in a folder that can be written to, got {job.output.parent}")


def _heldout_names(job: TrainJob, samples: list[Sample]) -> set[str]:
    if job.heldout is None:
        return set()
    if not job.heldout.exists():
        write_heldout(job.heldout, choose_heldout(samples, share=0.15, seed=0))
    names = read_heldout(job.heldout)
    missing = sorted(set(names) - {sample.name for sample in samples})
    if missing:
        raise ConfigError(
            f"{len(missing)} held-out images are not in {job.data}, the first is {missing[0]!r}; check --data"
        )
    return set(names)
