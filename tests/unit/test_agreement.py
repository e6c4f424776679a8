"""Agreement of two segmentations, on squares by hand."""

from __future__ import annotations

import numpy as np
import shapely

from segworker.agreement import Judgement, judge

RIM = shapely.MultiLineString([[(100, 0), (100, 100)]])
NO_RIM = shapely.MultiLineString([])


def square(x: float, y: float, side: float = 10) -> shapely.Geometry:
    return shapely.box(x, y, x + side, y + side)


def judged(first: list, second: list, *, classes=None, rim=RIM, **options) -> Judgement:
    ones = (np.ones(len(first), np.int64), np.ones(len(second), np.int64))
    return judge(
        np.array(first, dtype=object),
        np.array(second, dtype=object),
        class_ids=ones if classes is None else tuple(np.array(c, np.int64) for c in classes),
        rim=rim,
        **options,
    )


def test_the_same_objects_agree() -> None:
    squares = [square(0, 0), square(20, 0), square(40, 50)]
    found = judged(squares, squares[::-1])
    assert found.table.tolist() == [[1, 3, 3, 3]]
    assert (found.iou_sum, found.left_out) == (3.0, 0)


def test_what_is_moved_cut_or_missing_does_not() -> None:
    plain = [square(0, 0), square(20, 0), square(40, 0), square(60, 0, 20)]
    halves = [shapely.box(60, 0, 70, 20), shapely.box(70, 0, 80, 20)]
    found = judged(plain, [square(0, 2), square(26, 0), *halves], rim=NO_RIM)
    assert found.table.tolist() == [[1, 2, 4, 4]], "one of two halves has just an IoU of one half"
    assert judged(plain, [square(0, 2)], min_iou=0.9, rim=NO_RIM).table.tolist() == [[1, 0, 4, 1]]


def test_classes_are_apart() -> None:
    squares = [square(0, 0), square(20, 0)]
    found = judged(squares, squares, classes=([1, 2], [1, 3]))
    assert found.table.tolist() == [[1, 1, 1, 1], [2, 0, 1, 0], [3, 0, 0, 1]]


def test_objects_at_the_rim_are_left_out_with_what_lies_in_them() -> None:
    across, inside = shapely.box(80, 0, 130, 10), shapely.box(80, 0, 99, 10)
    fragments = [shapely.box(80, 20, 88, 30), shapely.box(88, 20, 100, 30)]
    found = judged([across, square(0, 0)], [inside, square(0, 0)])
    assert found.table.tolist() == [[1, 1, 1, 1]]
    assert found.left_out == 2
    assert judged([shapely.box(80, 20, 120, 30)], fragments).table.tolist() == []
    assert judged([across], [inside], rim=NO_RIM).table.tolist() == [[1, 0, 1, 1]]


def test_of_copies_one_is_matched() -> None:
    found = judged([square(0, 0)], [square(0, 0), square(1, 0), square(0, 0)])
    assert found.table.tolist() == [[1, 1, 1, 3]]
    assert found.iou_sum == 1.0


def test_nothing_agrees_with_nothing() -> None:
    assert judged([], []).table.shape == (0, 4)
    assert judged([square(0, 0)], []).table.tolist() == [[1, 0, 1, 0]]
