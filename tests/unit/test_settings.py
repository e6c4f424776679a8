"""A run that cannot use an earlier one's tile results says which setting differs."""

from pathlib import Path

from segworker.io.settings import keep_settings, why_not_used
from segworker.io.storage import open_storage

BASE = {"model": "abc", "tile": 256, "overlap": 32, "bands": (1, 2), "aoi": None}


def test_the_nearest_work_is_compared(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    assert why_not_used(storage, "mine", BASE) is None
    keep_settings(storage, "mine", BASE)
    assert why_not_used(storage, "mine", BASE) is None, "its own"
    keep_settings(storage, "far", BASE | {"tile": 512, "model": "def", "aoi": "0123"})
    assert why_not_used(storage, "mine", BASE) == "area of interest, model or weights, tile (512, now 256)"
    keep_settings(storage, "near", BASE | {"overlap": 64})
    storage.write("work/older/block.parquet", b"without settings")
    storage.write("work/broken/settings.json", b"{")
    assert why_not_used(storage, "mine", BASE) == "overlap (64, now 32)"


def test_settings_are_written_once(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    keep_settings(storage, "mine", BASE)
    keep_settings(storage, "mine", BASE | {"tile": 1})
    assert why_not_used(storage, "other", BASE) is None or "tile" not in str(why_not_used(storage, "other", BASE))
