"""The seam rule: what two neighbouring tiles may call one object."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segworker import masks
from segworker.decode import decode_instances
from segworker.fragments import fragments
from segworker.grid import Grid
from segworker.seams import FORWARD, Links, SeamRule, link, neighbours, strips
from segworker.types import CroppedMasks, Instances, Prediction, Runs, Tile, Window
from tests.strategies import EIGHT, binary_masks, blobs, grids, partitions, seeds, tilings

GRID = Grid("s", 464, 256, 256, 48)
"Two tiles side by side, their strip 48 px wide and 256 px high."
LEFT, RIGHT = GRID.tile(0, 0), GRID.tile(0, 1)
RULE = SeamRule()


def instances(tile: Tile, found: list[np.ndarray], *, grid: Grid = GRID, class_ids=None) -> Instances:
    """Masks of the whole scene as one tile sees them; those that it does not see are dropped."""
    n = len(found)
    window = Window(0, 0, grid.width, grid.height)
    crops = tuple(np.asarray(m, bool)[tile.window.slices_in(window)] for m in found)
    classes = np.ones(n, np.int32) if class_ids is None else np.asarray(class_ids, np.int32)
    what = Prediction(np.zeros((n, 4)), classes, np.full(n, 0.9), CroppedMasks(crops, np.zeros((n, 2), int)))
    return decode_instances(what, tile, grid=grid, class_ids=set(classes.tolist()))


def scene_of(*boxes, grid: Grid = GRID) -> np.ndarray:
    """One mask with rectangles (left, top, right, bottom)."""
    image = np.zeros((grid.height, grid.width), bool)
    for left, top, right, bottom in boxes:
        image[top:bottom, left:right] = True
    return image


def pairs_of(left: list[np.ndarray], right: list[np.ndarray], rule: SeamRule = RULE) -> list:
    return link(instances(LEFT, left), instances(RIGHT, right), grid=GRID, rule=rule).pairs.tolist()


# ------------------------------------------------------------------------------------------------ geometry


@settings(deadline=None, max_examples=80)
@given(grids(), st.integers(0, 30))
def test_the_trusted_middle_lies_in_the_strip_away_from_its_cut_ends(grid: Grid, trust_px: int) -> None:
    for row, col in ((0, 0), (grid.y.count - 1, grid.x.count - 1), (grid.y.count // 2, 0)):
        first = grid.tile(row, col)
        for other in neighbours(grid, row, col):
            second = grid.tile(*other)
            strip, trusted = strips(first, second, grid, trust_px)
            assert strip == first.window.intersect(second.window)
            assert strips(second, first, grid, trust_px) == (strip, trusted)
            assert trusted.intersect(strip) == trusted
            assert (trusted.area_px > 0) == (strip.area_px > 0)
            assert trusted.width * 2 >= strip.width
            assert trusted.col_off - strip.col_off <= trust_px
            if strip.col_off == 0:
                assert trusted.col_off == 0
            if strip.row_end == grid.height:
                assert trusted.row_end == grid.height


@settings(deadline=None, max_examples=30)
@given(grids())
def test_each_pair_of_tiles_that_touch_is_met_once(grid: Grid) -> None:
    rows, cols = grid.shape_yx
    rows, cols = min(rows, 6), min(cols, 6)
    met = [frozenset([(r, c), n]) for r in range(rows) for c in range(cols) for n in neighbours(grid, r, c)]
    assert len(met) == len(set(met))
    inside = {pair for pair in met if all(r < rows and c < cols for r, c in pair)}
    places = [(r, c) for r in range(rows) for c in range(cols)]
    expected = {
        frozenset([p, q]) for p in places for q in places if p != q and max(abs(p[0] - q[0]), abs(p[1] - q[1])) == 1
    }
    assert inside == expected
    assert all(step > (0, 0) for step in FORWARD)


@settings(deadline=None, max_examples=50)
@given(binary_masks(), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
def test_fragments_are_the_8_connected_parts_in_the_strip(mask, left: int, top: int, width: int, height: int) -> None:
    tile = Grid("s", mask.shape[1], mask.shape[0], 64, 0).tile(0, 0)
    strip = Window(left, top, width, height).intersect(tile.window)
    trusted = Window(strip.col_off, strip.row_off, strip.width // 2, strip.height)
    runs = masks.runs_from_mask(mask, window=tile.window)
    one = Instances(
        tile, np.array([7], np.int32), np.ones(1, np.float32), masks.boxes_xyxy(runs), np.zeros(1, np.uint8), runs
    )
    got = fragments(one, strip, trusted)
    cut = mask[strip.slices_in(tile.window)]
    found, count = ndimage.label(cut, EIGHT)
    assert len(got) == count
    assert got.facts[:, 0].tolist() == np.bincount(found.ravel(), minlength=count + 1)[1:].tolist()
    in_trusted = found[:, : strip.width // 2].ravel()
    assert got.facts[:, 1].tolist() == np.bincount(in_trusted, minlength=count + 1)[1:].tolist()
    assert set(got.facts[:, 2].tolist()) <= {int(mask.sum())}
    assert set(got.facts[:, 4].tolist()) <= {7}


# ------------------------------------------------------------------------------------------------ what is linked


def test_one_object_seen_by_both() -> None:
    mask = scene_of((200, 100, 300, 140))
    found = link(instances(LEFT, [mask]), instances(RIGHT, [mask]), grid=GRID, rule=RULE)
    assert found.pairs.tolist() == [[0, 0]]
    assert found.iou.tolist() == [1.0]
    assert found.seen.tolist() == [[1, 1], [1, 1]]


def test_objects_of_one_side_are_not_linked() -> None:
    mask = scene_of((200, 100, 300, 140))
    assert pairs_of([mask], []) == []
    assert pairs_of([], [mask]) == []
    assert pairs_of([], []) == []
    assert pairs_of([scene_of((0, 0, 50, 50))], [scene_of((400, 0, 460, 50))]) == []
    missed = link(instances(LEFT, [mask]), instances(RIGHT, []), grid=GRID, rule=RULE)
    assert missed.seen.tolist() == [[1, 0]]


def test_touching_neighbours_stay_apart() -> None:
    lanes = [scene_of((150, top, 350, top + 3)) for top in range(50, 110, 3)]
    assert pairs_of(lanes, lanes) == [[k, k] for k in range(len(lanes))]
    assert pairs_of(lanes, lanes[::-1]) == [[k, len(lanes) - 1 - k] for k in range(len(lanes))]


def test_touching_neighbours_stay_apart_when_their_outlines_jitter() -> None:
    tops = range(20, 240, 20)
    left = [scene_of((150, top + 2, 350, top + 20)) for top in tops]
    right = [scene_of((150, top - 2, 350, top + 18)) for top in tops]
    assert pairs_of(left, right) == [[k, k] for k in range(len(left))]


def test_the_legs_of_a_u_link_with_its_arch() -> None:
    legs = [scene_of((20, 100, 260, 110)), scene_of((20, 140, 260, 150))]
    arch = scene_of((20, 100, 400, 110), (20, 140, 400, 150), (390, 100, 400, 150))
    assert pairs_of(legs, [arch]) == [[0, 0], [1, 0]]
    assert pairs_of([arch], legs) == [[0, 0], [0, 1]]


def test_a_vote_that_is_not_returned_must_be_surer() -> None:
    """The left tile saw a neighbour that the right one missed; it overlaps the right one's field."""
    field = scene_of((150, 100, 350, 140))
    for top, bottom, linked in ((128, 160, False), (118, 142, True)):  # IoU 0.2 and 0.52
        stray = scene_of((150, top, 350, bottom))
        assert pairs_of([field, stray], [field]) == [[0, 0]] + [[1, 0]] * linked
        assert pairs_of([field], [field, stray]) == [[0, 0]] + [[0, 1]] * linked


def test_a_thin_lane_in_a_broad_one_is_the_same() -> None:
    """One tile draws a lane 3 px wide, the other one 15 px: an IoU of 0.2."""
    thin, broad = scene_of((20, 106, 440, 109)), scene_of((20, 100, 440, 115))
    beside = scene_of((20, 112, 440, 130))  # as small an IoU with what lies beside it
    assert pairs_of([thin], [broad]) == [[0, 0]]
    assert pairs_of([beside], [broad]) == []


def test_what_a_neighbour_split_is_linked_with_both_halves() -> None:
    whole = scene_of((150, 100, 350, 140))
    halves = [scene_of((150, 100, 350, 118)), scene_of((150, 122, 350, 140))]
    assert pairs_of([whole], halves) == [[0, 0], [0, 1]]


@pytest.mark.parametrize("rim_px", [1, 10, 256])
def test_thin_evidence_does_not_weld_huge_fields(rim_px: int) -> None:
    """Two fields meet at the strip's end; in one tile the border lies a little further, on a stretch of it."""
    border = RIGHT.window.col_off
    one = [scene_of((0, 0, border, 256), (border, 0, border + 2, rim_px))]
    other = [scene_of((border, 0, 464, 256))]
    assert pairs_of(one, other) == []


def test_a_rim_beside_the_true_partner_does_not_weld() -> None:
    """Both fields cross the strip, and each tile draws their border 2 px elsewhere, along its whole length."""
    left = [scene_of((0, 0, 464, 126)), scene_of((0, 126, 464, 256))]
    right = [scene_of((0, 0, 464, 130)), scene_of((0, 130, 464, 256))]
    assert pairs_of(left, right) == [[0, 0], [1, 1]]


def test_what_lies_inside_another_object_is_linked_with_itself() -> None:
    house, parcel = scene_of((215, 100, 265, 140)), scene_of((150, 80, 330, 160))
    assert pairs_of([house, parcel], [house, parcel]) == [[0, 0], [1, 1]]
    assert pairs_of([parcel, house], [house, parcel]) == [[0, 1], [1, 0]]


def test_a_speck_is_linked_although_it_shows_little() -> None:
    speck = scene_of((230, 100, 232, 102))
    assert pairs_of([speck], [speck]) == [[0, 0]]
    away = scene_of((233, 100, 235, 102))
    assert pairs_of([speck], [away]) == []


def test_an_end_that_only_just_reaches_the_strip_is_linked_when_both_agree() -> None:
    field = scene_of((20, 20, RIGHT.window.col_off + 1, 40))
    assert pairs_of([field], [field]) == [[0, 0]]


def test_fragments_that_agree_too_little_are_not_linked() -> None:
    left, right = scene_of((100, 100, 400, 140)), scene_of((100, 120, 400, 160))  # IoU 1/3
    assert pairs_of([left], [right], SeamRule(min_iou=0.34)) == []
    assert pairs_of([left], [right], SeamRule(min_iou=0.33)) == [[0, 0]]


# ------------------------------------------------------------------------------------------------ laws


def seen(labels: np.ndarray, tile: Tile, grid: Grid) -> Instances:
    ids = np.unique(labels[tile.window.slices_in(Window(0, 0, grid.width, grid.height))])
    return instances(tile, [labels == i for i in ids if i], grid=grid, class_ids=[i for i in ids if i])


@settings(deadline=None, max_examples=12)
@given(st.one_of(blobs(max_side=60), partitions(max_side=60)), st.data())
def test_perfect_sight_links_each_object_with_itself_alone(labels: np.ndarray, data) -> None:
    grid = data.draw(tilings(labels.shape, min_tile=20, max_tile=50))
    whole = Window(0, 0, grid.width, grid.height)
    for tile in grid.tiles():
        for place in neighbours(grid, tile.row, tile.col):
            a, b = seen(labels, tile, grid), seen(labels, grid.tile(*place), grid)
            found = link(a, b, grid=grid, rule=RULE)
            linked = [(a.class_ids[i], b.class_ids[j]) for i, j in found.pairs]  # the class tells the object
            strip = labels[tile.window.intersect(b.tile.window).slices_in(whole)]
            assert sorted(linked) == [(i, i) for i in np.unique(strip[strip > 0])]
            assert (found.iou == 1).all()
            assert (found.seen[:, 1] == 1).all()


def blocky(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Masks that overlap, on a lattice so coarse that equal areas and equal intersections are common."""
    found = []
    for _ in range(count):
        left, top = rng.integers(24, 34) * 8, rng.integers(0, 6) * 8
        found.append(scene_of((left, top, left + rng.integers(1, 5) * 8, top + rng.integers(1, 4) * 8)))
    return found


def mirrored(found: Links) -> list:
    return sorted((j, i) for i, j in found.pairs.tolist())


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_neither_the_order_of_tiles_nor_of_instances_matters(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = instances(LEFT, blocky(rng, rng.integers(1, 7)))
    b = instances(RIGHT, blocky(rng, rng.integers(1, 7)))
    found = link(a, b, grid=GRID, rule=RULE)
    assert mirrored(link(b, a, grid=GRID, rule=RULE)) == sorted(map(tuple, found.pairs.tolist()))
    p, q = rng.permutation(len(a)), rng.permutation(len(b))
    shuffled = link(a.take(p), b.take(q), grid=GRID, rule=RULE)
    assert shape_pairs(a.take(p), b.take(q), shuffled) == shape_pairs(a, b, found)
    assert sorted(shuffled.iou.tolist()) == sorted(found.iou.tolist())
    assert sorted(map(tuple, shuffled.seen.tolist())) == sorted(map(tuple, found.seen.tolist()))


def shape_pairs(a: Instances, b: Instances, found: Links) -> list:
    """Linked boxes: equal rectangles of one tile cannot be told apart, and need not be."""
    return sorted((*a.boxes_xyxy[i].tolist(), *b.boxes_xyxy[j].tolist()) for i, j in found.pairs)


def test_a_tie_of_votes_does_not_depend_on_the_order_of_instances() -> None:
    """The voter's pixels are shared evenly by two partners, each of which holds more of another object."""
    voter = scene_of((220, 90, 240, 130))
    others = [scene_of((220, 60, 240, 90)), scene_of((220, 130, 240, 160))]
    partners = [scene_of((220, 60, 240, 110)), scene_of((220, 110, 240, 160))]
    forth = pairs_of([voter, *others], partners)
    back = pairs_of([voter, *others], partners[::-1])
    assert forth == sorted([i, 1 - j] for i, j in back)


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_links_are_distinct_and_agree_with_the_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = instances(LEFT, blocky(rng, 6)), instances(RIGHT, blocky(rng, 6))
    found = link(a, b, grid=GRID, rule=RULE)
    assert len(found.pairs) == len({tuple(p) for p in found.pairs.tolist()}) == len(found.iou)
    strip, _ = strips(LEFT, RIGHT, GRID, RULE.cut_trust_px)
    for (i, j), iou in zip(found.pairs, found.iou, strict=True):
        one, other = (image_in(strip, side.runs, k) for side, k in ((a, i), (b, j)))
        assert (one & other).any()
        assert 0 < iou <= 1


def image_in(strip: Window, runs: Runs, k: int) -> np.ndarray:
    return masks.labels_from_runs(runs.take(np.array([k])), window=strip) > 0
