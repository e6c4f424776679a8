"""The bundled nuclei model."""

from pathlib import Path

from segworker.models.nuclei.model import build_nuclei
from segworker.models.registry import ModelEntry, register

__all__ = ["build_nuclei"]

_FOLDER = Path(__file__).parent

register(
    ModelEntry(
        name="nuclei",
        build=build_nuclei,
        summary="Compact Mask R-CNN for cell nuclei in fluorescence and stained tissue",
        tasks=("boxes", "instances"),
        num_parameters=4_720_842,
        licence="Apache-2.0, trained on CC0 images",
        bundled=_FOLDER / "weights.safetensors",
        narrow={"detections": 10},
    )
)
