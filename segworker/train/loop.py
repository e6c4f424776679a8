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

from segworker.errors import ConfigError, TrainingError
from segworker.train.balance import BalanceConfig, LossBalance, short
from segworker.train.team import Team

MAX_SKIPPED = 20
"Steps in a row whose gradients overflow."
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
    "At its peak: a linear warm-up leads to it, the schedule down from it."
    schedule: str = "cosine"
    "'cosine': half a cosine down to `final_share`; 'step': a tenth of it after each of `step_at`."
    step_at: tuple[float, ...] = (0.7, 0.9)
    "Shares of the iterations."
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
        if self.schedule not in ("cosine", "step"):
            raise ConfigError(f"a schedule is 'cosine' or 'step', got {self.schedule!r}")
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

    def __init__(
        self,
        model: nn.Module,
        source: BatchSource,
        config: TrainConfig,
        *,
        device: str = "cpu",
        balance: BalanceConfig | None = None,
        team: Team | None = None,
    ) -> None:
        """Prepare; the model is moved and changed.

        Args:
            model: has a `loss(images, targets)` that returns named terms.
            source: of batches.
            config: numbers.
            device: a torch device.
            balance: how the terms are weighted; default: they are added.
            team: the workers that train together; default: this process alone.

        Raises:
            ConfigError: weights for terms that the model's loss does not have.
        """
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.source, self.config, self.device = source, config, torch.device(device)
        self.team = team or Team()
        self.balance = self._make_balance(balance or BalanceConfig()).to(self.device)
        groups = parameter_groups(model, config.weight_decay)
        groups[1]["params"] += list(self.balance.parameters())
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        self.team.start_alike([self.model, self.balance])
        self.ema = Ema(model, config.ema_decay)
        self.step, self.seconds, self.num_skipped = 0, 0.0, 0
        self.weighted: dict[str, float] = {}
        "The terms of the last step as they were added."

    def _make_balance(self, config: BalanceConfig) -> LossBalance:
        """Return the weighting; where it must know the terms, one batch is tried."""
        if config.is_plain:
            return LossBalance(config)
        set_train_mode(self.model, freeze_norm=True)
        with torch.no_grad():
            return LossBalance(config, list(self._losses(*self.source.batch(0, 1))))

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
        batch = self.step * self.team.size + self.team.rank
        torch.manual_seed(config.seed * 1_000_003 + batch)
        images, targets = self.source.batch(batch, config.batch_size)
        losses = self._losses(images, targets)
        found = {name: float(value.detach()) for name, value in losses.items()}
        self._check_finite(found, batch)
        weighted = self.balance(losses)
        self.weighted = {name: float(value.detach()) for name, value in weighted.items()}
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(weighted.values())).sum().backward()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.team.mean_gradients(trained)
        norm = nn.utils.clip_grad_norm_(trained, config.clip_norm)
        self._apply(bool(torch.isfinite(norm)), batch)
        self.step += 1
        return found

    def _apply(self, finite: bool, batch: int) -> None:  # noqa: FBT001 - of the gradients
        """Take the step; gradients that overflow are left out, but not for ever."""
        if finite:
            self.optimizer.step()
            self.ema.update(self.model)
            self.num_skipped = 0
            return
        self.num_skipped += 1
        if self.num_skipped >= MAX_SKIPPED:
            raise TrainingError(
                f"gradients must be finite numbers, got others {MAX_SKIPPED} times in a row up to step {self.step} "
                f"(batch {batch}); lower the learning rate, or use --precision fp32"
            )

    def _check_finite(self, losses: Mapping[str, float], batch: int) -> None:
        """Stop all workers where one of them has a loss that is no number."""
        bad = next((name for name, value in losses.items() if not math.isfinite(value)), None)
        if not self.team.any(bad is not None, self.device):
            return
        describe = getattr(self.source, "describe", None)
        where = f": {describe(batch, self.config.batch_size)}" if describe and bad else ""
        told = f"{losses[bad]} for {bad}" if bad else "another on another worker"
        raise TrainingError(
            f"every loss must be a finite number, got {told} at step {self.step} (batch {batch}{where}); lower the "
            "learning rate, raise the warm-up, or look at that batch"
        )

    def _losses(self, images: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        images = images.to(self.device, memory_format=torch.channels_last)
        placed = [{name: value.to(self.device) for name, value in target.items()} for target in targets]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses: dict[str, Tensor] = self.model.loss(images, placed)
        return losses

    def state(self) -> dict[str, Any]:
        """Return everything that `load_state` needs."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "ema_updates": self.ema.num_updates,
            "optimizer": self.optimizer.state_dict(),
            "balance": self.balance.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned; the configuration must be the same (not checked)."""
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.ema.num_updates = state["ema_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.balance.load_state_dict(state.get("balance", {}))
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self, path: Path) -> None:
        """Write everything that `resume` needs, replacing the file in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save(self.state(), partial)
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
        self.load_state(torch.load(path, map_location=self.device, weights_only=True))

    def _describe(self, sums: Mapping[str, float]) -> str:
        parts = " ".join(f"{short(name)} {value:.3f}" for name, value in sums.items())
        rate = self.optimizer.param_groups[0]["lr"]
        return (
            f"step {self.step}/{self.config.iterations}  loss {sum(sums.values()):.3f}  {parts}  lr {rate:.2e}  "
            f"{self.seconds / self.step:.2f} s/step"
        )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of a step: linear warm-up, then half a cosine down to `final_share`, or steps down."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "step":
        return config.learning_rate * 0.1 ** sum(step >= share * config.iterations for share in config.step_at)
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
