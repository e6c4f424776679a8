"""The training loop: any model with a `loss`, any source of batches; no Ray.

A step's batch depends on the seed and the step's number alone, so a run that was interrupted and resumed sees the
batches that it would have seen.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from segworker.errors import ConfigError

Batch = tuple[Tensor, Sequence[Mapping[str, Tensor]]]


class BatchSource(Protocol):
    """Where batches come from; `CropSampler` is one."""

    def batch(self, step: int, size: int) -> Batch:
        """Return images (B, C, H, W) in 0..1 and one target for each, the same for the same step."""
        ...


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train."""

    iterations: int = 3400
    "Steps that the learning rate's schedule is laid out for."
    stop_after: int | None = None
    "End early, at this step of the schedule."
    batch_size: int = 4
    learning_rate: float = 1e-3
    "At its peak: a linear warm-up leads to it, half a cosine down from it."
    final_share: float = 0.01
    "The last learning rate as a share of the peak."
    warmup: int = 300
    "Iterations."
    weight_decay: float = 0.02
    "On weights of two and more dimensions; never on biases and norms."
    clip_norm: float = 5.0
    ema_decay: float = 0.998
    "Of the averaged weights, which are the ones to keep."
    freeze_norm_after: float = 0.7
    "Share of the iterations after which batch norms keep their statistics, so that training sees what inference sees."
    precision: str = "bf16"
    "'bf16' runs the backbone and the heads' convolutions in bfloat16 (weights stay float32); 'fp32' does not."
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch_size, self.log_every, self.checkpoint_every) < 1:
            raise ConfigError(f"iterations, batch_size and intervals are at least 1, got {self}")
        if self.precision not in ("bf16", "fp32") or self.learning_rate <= 0:
            raise ConfigError(f"precision is bf16 or fp32 and the learning rate above 0, got {self}")


class Ema:
    """An exponential average of a model's parameters, and a copy of its buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model`; in the first steps faster than `decay` says."""
        self.num_updates += 1
        weight = 1 - min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        ours, theirs = self.model.state_dict(), model.state_dict()
        for name, value in ours.items():
            if value.is_floating_point():
                value.lerp_(theirs[name], weight)
            else:
                value.copy_(theirs[name])


class Trainer:
    """A model, its optimiser, its averaged copy, and the number of steps taken."""

    def __init__(self, model: nn.Module, source: BatchSource, config: TrainConfig, *, device: str = "cpu") -> None:
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.source, self.config, self.device = source, config, torch.device(device)
        self.optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.learning_rate)
        self.ema = Ema(model, config.ema_decay)
        self.step, self.seconds = 0, 0.0

    def run(self, *, log: Callable[[str], None] = print, checkpoint: Path | None = None) -> nn.Module:
        """Train up to `config.iterations` (or `stop_after`) steps in all and return the averaged model.

        Args:
            log: receives a line every `log_every` steps.
            checkpoint: overwritten every `checkpoint_every` steps and at the end.
        """
        sums: dict[str, float] = {}
        while self.step < min(self.config.iterations, self.config.stop_after or self.config.iterations):
            started = time.perf_counter()
            for name, value in self.train_step().items():
                sums[name] = sums.get(name, 0.0) + value / self.config.log_every
            self.seconds += time.perf_counter() - started
            if self.step % self.config.log_every == 0:
                log(self._describe(sums))
                sums = {}
            if checkpoint is not None and self.step % self.config.checkpoint_every == 0:
                self.save(checkpoint)
        if checkpoint is not None:
            self.save(checkpoint)
        return self.ema.model

    def train_step(self) -> dict[str, float]:
        """Take one step and return its losses."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        set_train_mode(self.model, freeze_norm=self.step >= config.freeze_norm_after * config.iterations)
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        images, targets = self.source.batch(self.step, config.batch_size)
        losses = self._losses(images, targets)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            self.ema.update(self.model)
        self.step += 1
        return {name: float(value.detach()) for name, value in losses.items()}

    def _losses(self, images: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        images = images.to(self.device, memory_format=torch.channels_last)
        placed = [{name: value.to(self.device) for name, value in target.items()} for target in targets]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses: dict[str, Tensor] = self.model.loss(images, placed)
        return losses

    def save(self, path: Path) -> None:
        """Write everything that `resume` needs, replacing the file in one step."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "ema_updates": self.ema.num_updates,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote; the configuration must be the same (not checked).

        Raises:
            ConfigError: there is no such file.
        """
        if not path.is_file():
            raise ConfigError(
                f"resuming needs the checkpoint of the interrupted run, found none at {path}; see --checkpoint"
            )
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.ema.num_updates = state["ema_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def _describe(self, sums: Mapping[str, float]) -> str:
        parts = " ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in sums.items())
        rate = self.optimizer.param_groups[0]["lr"]
        return (
            f"step {self.step}/{self.config.iterations}  loss {sum(sums.values()):.3f}  {parts}  lr {rate:.2e}  "
            f"{self.seconds / self.step:.2f} s/step"
        )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of a step: linear warm-up, then half a cosine down to `final_share`."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.iterations - config.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate * (config.final_share + (1 - config.final_share) * cosine)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay (weights) and those that do not (biases, norms)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def set_train_mode(model: nn.Module, *, freeze_norm: bool) -> None:
    """Put the model into training mode, its batch norms into inference mode where `freeze_norm`."""
    model.train()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)) and freeze_norm:
            module.eval()
