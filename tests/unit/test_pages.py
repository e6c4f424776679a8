"""The pages that are written, in a real browser: they open from a disk, load nothing, and need no mouse."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from segworker.evaluate.page import page as evaluation
from segworker.report.page import picture
from segworker.report.run_report import write_report
from tests.browser import address, opened
from tests.report_store import HOSTILE, found, make_store, record_of

BROKEN = "Array.from(document.images).filter(i => !i.complete || !i.naturalWidth).length"
WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


def check(file: Path, *, num_pictures: int, folded: int) -> None:
    with opened(address(file)) as (page, complaints):
        assert page.locator("img").count() == num_pictures
        assert page.evaluate(BROKEN) == 0
        assert not page.evaluate(WIDE), "nothing is wider than the window"
        assert page.locator("script, iframe, object").count() == 0
        assert all(page.locator("img").evaluate_all("all => all.map(i => i.alt.length > 0)"))
        assert HOSTILE in page.locator("body").inner_text()
        reached = set()
        for _ in range(60):  # everything that can be used is reached by Tab alone
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.tagName + document.activeElement.className"))
        assert {"Askip", "A", "SUMMARY", "DIVscroll"} <= reached
        assert page.locator("details").count() == folded
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("details").first.evaluate("d => d.open")
        assert len(page.pdf()) > 10_000
        assert complaints == []
    with opened(address(file), width=380) as (page, complaints):
        assert not page.evaluate(WIDE), "nor on a phone"
        assert complaints == []


def test_a_report_opens_and_is_usable(tmp_path: Path) -> None:
    storage, scene, grid = make_store(tmp_path)
    shown = found(storage, scene, grid)
    path = write_report(storage, record_of(), shown)
    num_pictures = len(shown.overviews) + len(shown.seams) + len(shown.suspects)
    check(tmp_path / "store" / path, num_pictures=num_pictures, folded=3)


def test_an_evaluation_opens_and_is_usable(tmp_path: Path) -> None:
    storage, scene, grid = make_store(tmp_path)
    shown = found(storage, scene, grid).seams[0]
    (tmp_path / "page.html").write_text(evaluation(_result(), [shown]))
    check(tmp_path / "page.html", num_pictures=1, folded=1)


def test_a_picture_is_shown_at_its_size() -> None:
    shown = picture(Image.new("RGB", (200, 100)), "what", shown_px=50)
    assert shown.size_wh == (50, 25)


def _result() -> dict:
    classes = {"house": {"ap": 0.5, "ap50": 0.8}, HOSTILE: {"ap": None, "ap50": None}}
    precision = {
        "ap": 0.5,
        "ap50": 0.8,
        "ap75": 0.4,
        "by_size": {"small": {"ap": 0.1, "ap50": 0.2}},
        "by_class": classes,
    }
    rates = {"pq": 0.5, "sq": 0.8, "rq": 0.6, "f1": 0.6, "precision": 0.7, "recall": 0.5}
    rates |= {"true_positives": 7, "false_positives": 3, "false_negatives": 7}
    faults = {"objects": 9, "cut": 1, "cut_rate": 0.1, "missed": 2, "missed_rate": 0.2}
    faults |= {"merged": 0, "merged_rate": 0.0, "duplicates": 0, "duplicate_rate": None}
    return {
        "run_id": "20261125T100000Z-abc123",
        "store": "store",
        "truth": [HOSTILE],
        "notes": [HOSTILE],
        "count": {"true": 14, "found": 10, "relative_error": -0.2857},
        "scenes": [{"scene_id": HOSTILE, "true": 14, "found": 10, "f1": 0.6, "pq": None}],
        "ap": {"mask": precision, "box": precision},
        "quality": {**rates, "by_class": {"house": rates, HOSTILE: rates}, "all_objects": rates},
        "seams": {"near_borders": faults, "interior": faults, "distance_px": 3},
        "precision_recall": {"house": [1 - k / 200 for k in range(101)], HOSTILE: [0.5] * 101},
        "calibration": {
            "expected_calibration_error": 0.07,
            "bins": [{"count": 3, "mean_score": 0.2, "right": 0.1}, {"count": 4, "mean_score": 0.8, "right": 0.9}],
        },
        "annotations": {"faults": {"without area": 2}, "listed": [HOSTILE]},
    }
