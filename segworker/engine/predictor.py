"""The process that holds the model. Only tensors are its business: reading and decoding happen elsewhere."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import torch

from segworker.engine.job import ModelFacts, Precision
from segworker.engine.tiles import Batch, BlockWork, TileFailure, scaled
from segworker.engine.watch import time_limit
from segworker.errors import PredictionError, WeightsError
from segworker.io.failures import redact
from segworker.io.storage import open_storage
from segworker.models.memory import keep_freed_memory
from segworker.models.protocol import choose_device, place, predict_arrays
from segworker.models.registry import load_model, model_digest
from segworker.types import Prediction

_log = logging.getLogger(__name__)


def fetch_weights(uri: str | None) -> Path | bytes | None:
    """Return a weights file as a local path, or its content where it lies in an object store."""
    if uri is None:
        return None
    if uri.startswith("s3://"):
        folder, _, name = uri.rpartition("/")
        return open_storage(folder).read(name)
    if "://" in uri and not uri.startswith("file://"):
        raise WeightsError(f"weights are a local file or an s3:// object, got {redact(uri)!r}; copy them there")
    return Path(uri.removeprefix("file://")).expanduser()


def describe_model(ref: str, options: dict[str, object], weights: str | None) -> ModelFacts:
    """Build a model once to learn what planning needs: spec, categories and digest.

    Raises:
        ConfigError, WeightsError: as `load_model`.
    """
    content = fetch_weights(weights)
    if isinstance(content, Path):
        weights = str(content.absolute())  # workers may have another working directory
    model = load_model(ref, weights=content, options=options)
    digest = model_digest(ref, weights=content, options=options, model=model)
    return ModelFacts(ref, tuple(sorted(options.items())), weights, model.spec, tuple(model.categories), digest)


class Predictor:
    """A loaded model on its device."""

    def __init__(
        self, facts: ModelFacts, *, precision: Precision, device: str, threads: int, tile_timeout_s: float
    ) -> None:
        torch.set_num_threads(threads)
        self.device = choose_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.precision = precision
        self.tile_timeout_s = tile_timeout_s
        self.num_halved = 0
        "Calls that ran out of memory and were made again with half as many tiles."
        model = load_model(facts.ref, weights=fetch_weights(facts.weights), options=dict(facts.options))
        self.model = place(model, self.device)

    def predict(self, work: BlockWork) -> None:
        """Predict all batches of a block in place; a tile that fails alone as well becomes a failure."""
        begin, halved = time.perf_counter(), self.num_halved
        for batch in work.batches:
            work.failures += self.predict_batch(batch)
            batch.drop_pixels()
        work.batches = [b for b in work.batches if b.tile_ids]
        work.num_halved += self.num_halved - halved
        work.seconds["predict"] = time.perf_counter() - begin

    def predict_batch(self, batch: Batch) -> list[TileFailure]:
        """Predict a batch in place, tile by tile if it fails as a whole; those that fail leave it and are returned."""
        every = list(range(len(batch.tile_ids)))
        try:
            batch.predictions = self._within_memory(batch, every)
        except Exception as error:  # noqa: BLE001 - a model may raise anything: its tiles are tried one by one
            if len(every) > 1:
                return self._predict_alone(batch)
            failures = [TileFailure.of(i, "predict", error) for i in batch.tile_ids]
            batch.tile_ids, batch.valid = [], []
            return failures
        return []

    def _predict_alone(self, batch: Batch) -> list[TileFailure]:
        """Predict tile by tile; take those that fail out of the batch."""
        kept: list[int] = []
        failures: list[TileFailure] = []
        for k, tile_id in enumerate(batch.tile_ids):
            try:
                batch.predictions += self._call(batch, [k])
                kept.append(k)
            except Exception as error:  # noqa: BLE001 - see above
                failures.append(replace(TileFailure.of(tile_id, "predict", error), tries=2))
        batch.tile_ids = [batch.tile_ids[k] for k in kept]
        batch.valid = [batch.valid[k] for k in kept]
        return failures

    def _within_memory(self, batch: Batch, indices: list[int]) -> list[Prediction]:
        """Predict tiles in one call, or in halves where memory does not suffice for all at once."""
        try:
            return self._call(batch, indices)
        except Exception as error:
            if not _out_of_memory(error) or len(indices) == 1:
                raise
        # Outside the handler: the traceback held on to the tensors of the failed call.
        self.num_halved += 1
        _log.warning("%d tiles at once did not fit the memory of %s; halved", len(indices), self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(indices) // 2
        return self._within_memory(batch, indices[:middle]) + self._within_memory(batch, indices[middle:])

    def _call(self, batch: Batch, indices: list[int]) -> list[Prediction]:
        images, valid = scaled(batch, indices)
        with time_limit(self.tile_timeout_s):
            found = predict_arrays(self.model, images, valid, device=self.device, precision=self.precision)
        for prediction in found:
            if not isinstance(prediction, Prediction):
                raise PredictionError(f"predict() returns Predictions, got {type(prediction).__name__}; fix the model")
        return found


def _out_of_memory(error: Exception) -> bool:
    """Whether a call failed for want of memory: on the GPU, or in the CPU's allocators."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)
