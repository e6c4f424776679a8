"""A training from annotated scenes to weights in a store: checkpoints, validation, early stop. No Ray in here.

`--output URI` receives split.json, train.json (what was done and what came of it), log.txt, checkpoints/ (the last
two), best.safetensors while it goes on, and weights.safetensors at the end.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from segworker.errors import ConfigError, TrainingError
from segworker.io.storage import Storage, open_storage
from segworker.models.memory import keep_freed_memory
from segworker.models.protocol import choose_device
from segworker.models.registry import Weights
from segworker.models.weights import save_weights
from segworker.train.balance import BalanceConfig, short
from segworker.train.classes import build_for
from segworker.train.init import init_from
from segworker.train.loop import TrainConfig, Trainer
from segworker.train.split import TRAIN, VALIDATE, Split, side_counts, to_json
from segworker.train.team import Team
from segworker.train.validate import Validation, validate
from segworker.train.windows import WindowConfig, WindowSampler
from segworker.truth import TruthSet
from segworker.types import Scene

FORMAT = 1
LOG = "log.txt"
KEPT_CHECKPOINTS = 2
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class FitPlan:
    """Everything that a worker needs to train. Picklable."""

    model: str
    options: tuple[tuple[str, Any], ...]
    scenes: tuple[Scene, ...]
    truth: TruthSet
    split: Split
    output: str
    "Folder or s3:// prefix."
    train: TrainConfig = field(default_factory=TrainConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    init: str | None = None
    "A model that bundles weights, or what the file was called."
    init_content: Weights | None = None
    init_part: Literal["whole", "backbone"] = "whole"
    device: str = "auto"
    threads: int | None = None
    "Torch threads of a worker; None: as torch chooses."
    validate_every: int = 0
    "Steps; 0: at the end alone."
    patience: int = 0
    "Validations without a better average precision after which training stops; 0: never."

    def key(self) -> str:
        """Return a hash of what a checkpoint depends on."""
        told = [self.model, self.options, _numbers(self.train), asdict(self.balance), repr(self.windows), self.init,
                self.init_part, to_json(self.split), [s.scene_id for s in self.scenes]]  # fmt: skip
        return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]


def _numbers(config: TrainConfig) -> dict[str, Any]:
    """Return the numbers that a run may not change when it goes on."""
    return {k: v for k, v in asdict(config).items() if k not in ("stop_after", "log_every", "checkpoint_every")}


def fit(plan: FitPlan, team: Team | None = None, *, log: Log = print) -> dict[str, Any]:
    """Train, or go on from the last checkpoint of the same plan, and return what train.json says.

    Args:
        plan: what to train; its output's own checkpoints are used.
        team: the workers that train together; all of them call this.
        log: receives lines, on the first worker.

    Raises:
        ConfigError: an output that holds a training of other settings.
        TrainingError: a loss that is no finite number.
        StorageError: an output that cannot be written to.
    """
    return _Fit(plan, team or Team(), log).run()


class _Fit:
    def __init__(self, plan: FitPlan, team: Team, log: Log) -> None:
        self.plan, self.team = plan, team
        self.sink = log
        self.storage = open_storage(plan.output)
        self.lines = self.storage.read(LOG).decode().splitlines() if self.storage.head(LOG) is not None else []
        self.device = choose_device(plan.device)
        if plan.threads:
            torch.set_num_threads(plan.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(plan.train.seed)
        model, self.options, self.truth = build_for(plan.model, dict(plan.options), plan.truth)
        assert isinstance(model, nn.Module)
        spec = model.spec
        if plan.windows.size_px % spec.stride:
            raise ConfigError(
                f"a window's side is a multiple of the stride, got {plan.windows.size_px} px and {spec.stride}; "
                f"use --window {-(-plan.windows.size_px // spec.stride) * spec.stride}"
            )
        self.source = WindowSampler(plan.scenes, self.truth, plan.split, plan.windows, spec=spec, seed=plan.train.seed)
        self.init = self._start(model)
        self.trainer = Trainer(model, self.source, plan.train, device=str(self.device), balance=plan.balance, team=team)
        self.history: list[dict[str, Any]] = []
        self.best: tuple[float, int] = (-1.0, 0)
        self.since_best = 0

    def log(self, line: str) -> None:
        """Tell a line, and keep it in the output."""
        if self.team.leads:
            self.lines += line.splitlines()
            self.storage.write(LOG, ("\n".join(self.lines) + "\n").encode())
            self.sink(line)

    def _start(self, model: nn.Module) -> str | None:
        plan = self.plan
        if plan.init is None:
            return None
        account = init_from(model, plan.init, plan.init_content, model_name=plan.model, part=plan.init_part)
        self.log(account.text)
        return account.text

    def run(self) -> dict[str, Any]:
        plan, trainer = self.plan, self.trainer
        self._resume()
        if self.team.leads:
            self.storage.write("split.json", to_json(plan.split).encode())
            self._record("running")
        last = min(plan.train.iterations, plan.train.stop_after or plan.train.iterations)
        sums: dict[str, float] = {}
        stopped = "patience" if self._out_of_patience() else ""
        while trainer.step < last and not stopped:
            begin = time.perf_counter()
            self._add(sums, trainer.train_step())
            trainer.seconds += time.perf_counter() - begin
            if trainer.step % plan.train.log_every == 0:
                sums = self._report(sums)
            due = plan.validate_every and trainer.step % plan.validate_every == 0
            if due and trainer.step < last:
                stopped = "patience" if self.team.any(self._validate(told=True), self.device) else ""
            if trainer.step % plan.train.checkpoint_every == 0 or stopped:
                self._checkpoint()
        self._checkpoint()
        if not self.team.leads:
            return {}
        if not stopped:
            self._validate(told=self.team.size == 1)
        return self._finish(stopped or ("end of the schedule" if last == plan.train.iterations else "--stop-after"))

    def _add(self, sums: dict[str, float], losses: Mapping[str, float]) -> None:
        for prefix, values in (("loss", losses), ("weighted", self.trainer.weighted)):
            for name, value in values.items():
                key = f"{prefix}/{short(name)}"
                sums[key] = sums.get(key, 0.0) + value / self.plan.train.log_every

    def _report(self, sums: dict[str, float]) -> dict[str, float]:
        """Tell the mean losses since the last report; return empty sums."""
        trainer = self.trainer
        rate = trainer.optimizer.param_groups[0]["lr"]
        total = sum(value for key, value in sums.items() if key.startswith("weighted/"))
        weights = {f"weight/{name}": value for name, value in trainer.balance.weights().items()}
        self.team.report({"step": trainer.step, "total": total, "learning_rate": rate, **sums, **weights})
        terms = " ".join(f"{key[5:]} {value:.3f}" for key, value in sums.items() if key.startswith("loss/"))
        told = " ".join(f"{key[7:]} x{value:.3g}" for key, value in weights.items())
        self.log(
            f"step {trainer.step}/{self.plan.train.iterations}  loss {total:.3f}  {terms}  lr {rate:.2e}  "
            f"{trainer.seconds / max(1, trainer.step):.2f} s/step" + (f"  weights {told}" if told else "")
        )
        return {}

    def _validate(self, *, told: bool) -> bool:
        """Measure the averaged weights on the first worker, keep the best, and return whether patience has run out.

        Figures are told where all workers are here to tell theirs.
        """
        if not self.team.leads:
            self.team.report({"step": self.trainer.step})
            return False
        plan, step = self.plan, self.trainer.step
        ema = self.trainer.ema.model
        found = validate(ema, plan.scenes, self.truth, plan.split, plan.windows, device=self.device)
        self.history.append({"step": step, **asdict(found)})
        figures = {"validation/ap": found.ap, "validation/ap50": found.ap50}
        if told:
            self.team.report({"step": step, **{k: v for k, v in figures.items() if v is not None}})
        self.log(f"step {step}/{plan.train.iterations}  validation AP {_shown(found.ap)}  AP50 {_shown(found.ap50)}")
        if (found.ap or 0.0) > self.best[0]:
            self.best, self.since_best = ((found.ap or 0.0), step), 0
            self._write_weights("best.safetensors", found)
        else:
            self.since_best += 1
        return self._out_of_patience()

    def _out_of_patience(self) -> bool:
        return bool(self.plan.patience) and self.since_best >= self.plan.patience

    def _write_weights(self, path: str, found: Validation | None) -> None:
        metadata = {"model": self.plan.model, "step": str(self.trainer.step), "seed": str(self.plan.train.seed)}
        metadata |= {"options": json.dumps(self.options), "ap50": _shown(found.ap50 if found else None)}
        with tempfile.TemporaryDirectory(prefix="segworker-") as folder:
            file = Path(folder, "weights.safetensors")
            save_weights(self.trainer.ema.model, file, metadata=metadata)
            self.storage.write(path, file)

    def _checkpoint(self) -> None:
        if not self.team.leads:
            return
        content = io.BytesIO()
        progress = {"best": list(self.best), "since_best": self.since_best, "history": json.dumps(self.history)}
        torch.save({"trainer": self.trainer.state(), "progress": progress}, content)
        step = self.trainer.step
        path = f"checkpoints/step-{step:08d}.pt"
        self.storage.write(path, content.getvalue())
        latest = {"format": FORMAT, "key": self.plan.key(), "path": path, "step": step}
        self.storage.write("checkpoints/latest.json", json.dumps(latest).encode())
        old = sorted(i.path for i in self.storage.list("checkpoints") if i.path.endswith(".pt"))[:-KEPT_CHECKPOINTS]
        self.storage.delete(old)

    def _resume(self) -> None:
        latest = read_latest(self.storage)
        if latest is None:
            return
        if latest["key"] != self.plan.key():
            raise ConfigError(
                f"an output holds one training, got other settings than those of the one in {self.storage.uri} (step "
                f"{latest['step']}); give the same command to go on, or another --output"
            )
        content = io.BytesIO(self.storage.read(latest["path"]))
        found: dict[str, Any] = torch.load(content, map_location=self.device, weights_only=True)
        self.trainer.load_state(found["trainer"])
        progress = found["progress"]
        self.best, self.since_best = (float(progress["best"][0]), int(progress["best"][1])), progress["since_best"]
        self.history = json.loads(progress["history"])
        self.log(f"resume    from step {self.trainer.step} of {self.storage.uri}")

    def _finish(self, why: str) -> dict[str, Any]:
        best = self.best[1]
        if self.storage.head("best.safetensors") is not None:
            self.storage.write("weights.safetensors", self.storage.read("best.safetensors"))
        else:
            self._write_weights("weights.safetensors", None)
            best = self.trainer.step
        self.source.close()
        record = self._record("done", ended=why, weights_of_step=best)
        self.log(f"weights   {self.storage.location('weights.safetensors')} (step {best}; {why})")
        return record

    def _record(self, status: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - any value of JSON
        plan, truth = self.plan, self.truth
        record: dict[str, Any] = {
            "format": FORMAT,
            "status": status,
            "model": plan.model,
            "model_options": self.options,
            "classes": [c.name for c in truth.categories],
            "scenes": [scene.scene_id for scene in plan.scenes],
            "objects": {side: side_counts(plan.split, truth, side) for side in (TRAIN, VALIDATE)},
            "annotations": {"faults": truth.counts(), "listed": [str(issue) for issue in truth.issues[:1000]]},
            "train": asdict(plan.train),
            "balance": {**asdict(plan.balance), "weights": self.trainer.balance.weights()},
            "windows": repr(plan.windows),
            "init": self.init,
            "workers": self.team.size,
            "device": str(self.device),
            "versions": {"torch": torch.__version__},
            "steps": self.trainer.step,
            "seconds": round(self.trainer.seconds, 1),
            "validation": self.history,
            **more,
        }
        content = json.dumps(record, indent=1, default=str)
        self.storage.write("train.json", content.encode())
        told: dict[str, Any] = json.loads(content)
        return told


def read_latest(storage: Storage) -> dict[str, Any] | None:
    """Return what checkpoints/latest.json says, or None where there is none."""
    if storage.head("checkpoints/latest.json") is None:
        return None
    try:
        found: dict[str, Any] = json.loads(storage.read("checkpoints/latest.json"))
        _ = found["key"], found["path"], found["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"a checkpoint must be readable, got {error!r} in {storage.uri}; give another --output"
        ) from None
    return found


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
