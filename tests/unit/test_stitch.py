"""The stitch: whole objects, once, whatever the tiles, their order, and the blocks in which the work was done."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segworker import masks
from segworker.decode import decode_instances
from segworker.grid import Grid
from segworker.seams import SeamRule
from segworker.stitch import (
    SEAM_NAMES,
    Features,
    Pieces,
    StitchOptions,
    assemble_block,
    cut_block,
    join_blocks,
    link_block,
    rank_blocks,
    stitch_linked,
    stitch_scene,
    summarise,
    sure_tiles,
)
from segworker.synthetic.truth import visible_truth
from segworker.types import CroppedMasks, Instances, LabelMasks, Prediction, Runs, Tile, Window
from tests.strategies import EIGHT, blobs, components_of, partitions, seeds, tilings

OPTIONS = StitchOptions()
SCORE = 0.9


# ------------------------------------------------------------------------------------------------ what tiles see


def whole(grid: Grid) -> Window:
    return Window(0, 0, grid.width, grid.height)


def perfect_tile(labels: np.ndarray, tile: Tile, grid: Grid, rng, *, parts: str = "one", classes=None) -> Instances:
    """The objects in a tile's window under numbers of its own: no identity leaks from one tile to the next."""
    seen = labels[tile.window.slices_in(whole(grid))]
    seen = components_of(seen) if parts == "several" else seen
    ids = np.unique(seen[seen > 0])
    numbers = np.zeros(int(seen.max(initial=0)) + 1, np.int32)
    numbers[ids] = rng.permutation(len(ids)) + 1
    class_ids = np.ones(len(ids), np.int32)
    if classes is not None:
        class_ids[numbers[seen[seen > 0]] - 1] = classes[labels[tile.window.slices_in(whole(grid))][seen > 0]]
    n = len(ids)
    what = Prediction(np.zeros((n, 4)), class_ids, np.full(n, SCORE), LabelMasks(numbers[seen]))
    return decode_instances(what, tile, grid=grid, class_ids=range(100))


def perfect_tiles(labels: np.ndarray, grid: Grid, seed: int = 0, **options) -> list[Instances]:
    rng = np.random.default_rng(seed)
    return [perfect_tile(labels, tile, grid, rng, **options) for tile in grid.tiles()]


def noisy_tiles(labels: np.ndarray, grid: Grid, seed: int) -> list[Instances]:
    """Objects missed, moved, frayed and overlapping, with scores and classes of their own in each tile."""
    rng = np.random.default_rng(seed)
    tiles = []
    for tile in grid.tiles():
        seen = components_of(labels[tile.window.slices_in(whole(grid))])
        kept = [i for i in rng.permutation(int(seen.max(initial=0))) + 1 if rng.random() > 0.1]
        crops = [ndimage.shift(seen == i, rng.integers(-1, 2, 2), order=0) for i in kept]
        crops = [ndimage.binary_dilation(c, EIGHT) if rng.random() < 0.5 else c for c in crops]
        n = len(crops)
        what = Prediction(
            np.zeros((n, 4)),
            rng.integers(1, 4, n),
            rng.uniform(0.1, 1, n),
            CroppedMasks(tuple(crops), np.zeros((n, 2), int)),
        )
        tiles.append(decode_instances(what, tile, grid=grid, class_ids=range(100)))
    return tiles


def drawn_tile(grid: Grid, row: int, col: int, *found: tuple) -> Instances:
    """Rectangles (left, top, right, bottom, score, class id) of the scene as one tile sees them."""
    tile = grid.tile(row, col)
    crops, corners = [], []
    for left, top, right, bottom, *_ in found:
        seen = Window(left, top, right - left, bottom - top).intersect(tile.window)
        crops.append(np.ones(seen.shape_yx, bool))
        corners.append((seen.col_off - tile.window.col_off, seen.row_off - tile.window.row_off))
    n = len(found)
    what = Prediction(
        np.zeros((n, 4)),
        np.array([f[5] for f in found], np.int32),
        np.array([f[4] for f in found], np.float32),
        CroppedMasks(tuple(crops), np.array(corners, np.int64).reshape(n, 2)),
    )
    return decode_instances(what, tile, grid=grid, class_ids=range(100))


# ------------------------------------------------------------------------------------------------ results


def truth_of(labels: np.ndarray) -> Runs:
    """The objects by first pixel, with numpy."""
    ids, first = np.unique(labels, return_index=True)
    ordered = ids[np.argsort(first)]
    numbers = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    ordered = ordered[ordered > 0]
    numbers[ordered] = np.arange(1, len(ordered) + 1)
    return masks.runs_from_labels(numbers[labels], len(ordered), window=Window(0, 0, *labels.shape[::-1]))


def columns_of(features: Features) -> dict[str, np.ndarray]:
    pieces = features.pieces
    runs = pieces.runs
    return {
        "index": features.index,
        "class_ids": pieces.class_ids,
        "scores": pieces.scores,
        "num_tiles": pieces.num_tiles,
        "seam": pieces.seam,
        "rows": runs.rows,
        "starts": runs.starts,
        "stops": runs.stops,
        "offsets": runs.offsets,
    }


def check_equal(one: Features, other: Features, *, but: tuple[str, ...] = ()) -> None:
    others = columns_of(other)
    for name, values in columns_of(one).items():
        assert name in but or np.array_equal(values, others[name]), name


def check_is(features: Features, labels: np.ndarray) -> None:
    """The features are the objects of a label image, pixel by pixel and in their order."""
    truth = truth_of(labels)
    found = features.pieces.runs
    assert len(features) == len(truth)
    assert features.index.tolist() == list(range(len(truth)))
    for name in ("rows", "starts", "stops", "offsets"):
        assert np.array_equal(getattr(found, name), getattr(truth, name)), name


def stitch_in_blocks(tiles: list[Instances], grid: Grid, side: int, options: StitchOptions, order=None) -> Features:
    """Stitch in blocks of side x side tiles, each seeing its own tiles and the ring around them alone."""
    by_key = sure_tiles({(t.tile.row, t.tile.col): t for t in tiles}, options)
    rows, cols = grid.shape_yx
    blocks = [(row, col) for row in range(0, rows, side) for col in range(0, cols, side)]
    blocks = blocks if order is None else [blocks[k] for k in order.permutation(len(blocks))]
    own = [{k: t for k, t in by_key.items() if (k[0] // side * side, k[1] // side * side) == b} for b in blocks]
    ring = [
        {
            k: t
            for k, t in by_key.items()
            if k not in mine and any(max(abs(k[0] - r), abs(k[1] - c)) == 1 for r, c in mine)
        }
        for mine in own
    ]
    links = [link_block(mine, around, grid=grid, rule=options.rule) for mine, around in zip(own, ring, strict=True)]
    borders = join_blocks([found.border for found in links])
    pieces = [cut_block(*each, grid=grid, options=options) for each in zip(own, ring, links, borders, strict=True)]
    regions = [union_of(grid, row, col, side) for row, col in blocks]
    summaries = [summarise(*each) for each in zip(pieces, regions, strict=True)]
    ranks = rank_blocks(summaries, options=options)
    found = []
    for mine, rank, region in zip(pieces, ranks, regions, strict=True):
        assert sorted(set(rank.sources)) == list(rank.sources)
        parts = Pieces.concatenate([mine.take(np.zeros(0, np.int64)), *(pieces[s] for s in rank.sources)])
        found.append(assemble_block(mine, parts, rank, region))
    order_of = np.argsort(np.concatenate([f.index for f in found]), kind="stable")
    joined = Pieces.concatenate([f.pieces for f in found]).take(order_of)
    return Features(np.concatenate([f.index for f in found])[order_of], joined)


def union_of(grid: Grid, row: int, col: int, side: int) -> Window:
    rows, cols = grid.shape_yx
    left, top = grid.x.core(col)[0], grid.y.core(row)[0]
    right, bottom = grid.x.core(min(cols, col + side) - 1)[1], grid.y.core(min(rows, row + side) - 1)[1]
    return Window(left, top, right - left, bottom - top)


# ------------------------------------------------------------------------------------------------ perfect sight

ONE_PIXEL = np.ones((1, 1), np.int32)
EMPTY = np.zeros((70, 90), np.int32)
FULL = np.ones((90, 70), np.int32)
DIAGONALS = np.where(np.abs(np.subtract.outer(np.arange(90), np.arange(90))) % 12 == 0, 1, 0)
NESTED = np.array([[max(abs(y - 50), abs(x - 50)) // 4 % 2 for x in range(100)] for y in range(100)])


@settings(deadline=None, max_examples=80)
@given(st.one_of(blobs(), blobs(), partitions()), st.sampled_from(["one", "several"]), seeds, st.data())
@example(ONE_PIXEL, "one", 0, None)
@example(EMPTY, "one", 0, None)
@example(FULL, "one", 0, None)
@example(components_of(DIAGONALS), "one", 0, None)
@example(components_of(NESTED), "several", 0, None)
def test_a_perfect_model_gives_the_truth(labels: np.ndarray, parts: str, seed: int, data) -> None:
    small = Grid("s", labels.shape[1], labels.shape[0], 17, 3)
    grid = small if data is None else data.draw(tilings(labels.shape))
    features = stitch_scene(perfect_tiles(labels, grid, seed, parts=parts), grid=grid, options=OPTIONS)
    check_is(features, labels)
    assert np.allclose(features.pieces.scores, SCORE)


@pytest.mark.parametrize(("tile", "overlap"), [(16, 1), (20, 15), (33, 8), (64, 2), (200, 1)])
def test_results_do_not_depend_on_the_grid(tile: int, overlap: int) -> None:
    rng = np.random.default_rng(4)
    labels = ndimage.label(ndimage.gaussian_filter(rng.normal(size=(90, 101)), 2) > 0, EIGHT)[0].astype(np.int32)
    grid = Grid("s", 101, 90, tile, overlap)
    check_is(stitch_scene(perfect_tiles(labels, grid), grid=grid, options=OPTIONS), labels)


@settings(deadline=None, max_examples=40)
@given(blobs(max_side=100), st.sampled_from(["one", "several"]), st.integers(1, 6), seeds, st.data())
def test_objects_in_parts_are_one_where_a_tile_could_see_it(labels, parts: str, modulus: int, seed: int, data) -> None:
    scattered = np.where(labels > 0, labels % modulus + 1, 0)
    grid = data.draw(tilings(labels.shape))
    expected, _ = visible_truth(scattered, [t.window for t in grid.tiles()], parts=parts)
    check_is(stitch_scene(perfect_tiles(scattered, grid, seed, parts=parts), grid=grid, options=OPTIONS), expected)


def snake(height: int, width: int) -> np.ndarray:
    """One line of a pixel that fills the scene, a pixel beside itself."""
    labels = np.zeros((height, width), np.int32)
    labels[::2] = 1
    labels[1::4, -1] = 1
    labels[3::4, 0] = 1
    return labels


def lanes(height: int, width: int) -> np.ndarray:
    """Parallel lanes that touch each other all along, each an object."""
    return np.repeat(np.arange(height)[:, None] // 3 + 1, width, axis=1).astype(np.int32)


@pytest.mark.parametrize("side", [1, 3, 100])
@pytest.mark.parametrize(
    "labels",
    [FULL, snake(101, 60), snake(60, 101).T, lanes(70, 120), lanes(70, 120).T, components_of(NESTED)],
    ids=["full", "snake", "snake across", "lanes", "lanes down", "nested rings"],
)
def test_objects_of_a_hundred_tiles(labels: np.ndarray, side: int) -> None:
    labels = np.ascontiguousarray(labels)
    grid = Grid("s", labels.shape[1], labels.shape[0], 16, 4)
    tiles = perfect_tiles(labels, grid, parts="several")
    features = stitch_in_blocks(tiles, grid, side, OPTIONS)
    check_is(features, labels)
    check_equal(features, stitch_scene(tiles, grid=grid, options=OPTIONS))


@settings(deadline=None, max_examples=20)
@given(blobs(), seeds, st.data())
def test_objects_keep_their_classes(labels: np.ndarray, seed: int, data) -> None:
    grid = data.draw(tilings(labels.shape))
    classes = np.random.default_rng(seed).integers(1, 9, int(labels.max(initial=0)) + 1)
    features = stitch_scene(perfect_tiles(labels, grid, seed, classes=classes), grid=grid, options=OPTIONS)
    truth = truth_of(labels)
    first = masks.first_pixels_yx(truth)
    assert features.pieces.class_ids.tolist() == classes[labels[first[:, 0], first[:, 1]]].tolist()


# ------------------------------------------------------------------------------------------------ blocks and order

NEAR = SeamRule(cut_trust_px=1)
"Trusts masks almost to the window's side, so that small tiles, too, see objects beyond their cores as a whole."
VARIANTS = [
    OPTIONS,
    StitchOptions(rule=NEAR),
    StitchOptions(rule=NEAR, exclusive=False, min_kept_share=0),
    StitchOptions(exclusive=False),
    StitchOptions(min_score=0.5, class_min_score=((2, 0.3),), class_ids=(1, 2), min_area_px=9, max_area_px=3000),
]


@settings(deadline=None, max_examples=60)
@given(blobs(max_side=90), seeds, st.sampled_from(VARIANTS), st.integers(1, 4), st.booleans(), st.data())
def test_results_do_not_depend_on_blocks(labels, seed: int, options: StitchOptions, side: int, noisy, data) -> None:
    grid = data.draw(tilings(labels.shape, max_tile=48))
    tiles = noisy_tiles(labels, grid, seed) if noisy else perfect_tiles(labels, grid, seed, parts="several")
    at_once = stitch_scene(tiles, grid=grid, options=options)
    assert at_once.index.tolist() == list(range(len(at_once)))
    check_equal(stitch_in_blocks(tiles, grid, side, options, np.random.default_rng(seed)), at_once)


@settings(deadline=None, max_examples=25)
@given(blobs(max_side=90), seeds, st.sampled_from(VARIANTS), st.data())
def test_results_do_not_depend_on_the_order_of_tiles_and_instances(labels, seed: int, options, data) -> None:
    grid = data.draw(tilings(labels.shape, max_tile=48))
    tiles = noisy_tiles(labels, grid, seed)
    rng = np.random.default_rng(seed)
    shuffled = [tiles[k].take(rng.permutation(len(tiles[k]))) for k in rng.permutation(len(tiles))]
    check_equal(stitch_scene(shuffled, grid=grid, options=options), stitch_scene(tiles, grid=grid, options=options))


@settings(deadline=None, max_examples=25)
@given(blobs(max_side=90), seeds, st.integers(1, 3), st.data())
def test_statistics_count_each_pair_of_tiles_once(labels: np.ndarray, seed: int, side: int, data) -> None:
    grid = data.draw(tilings(labels.shape, max_tile=48))
    tiles = noisy_tiles(labels, grid, seed)
    _, links = stitch_linked(tiles, grid=grid, options=OPTIONS)
    by_key = {(t.tile.row, t.tile.col): t for t in tiles}
    seen, ious = np.zeros((100, 2), np.int64), np.zeros((100, 2), np.int64)
    for row, col in itertools.product(*(range(0, n, side) for n in grid.shape_yx)):
        own = {k: t for k, t in by_key.items() if k[0] // side * side == row and k[1] // side * side == col}
        ring = {k: t for k, t in by_key.items() if k not in own}
        block = link_block(own, ring_of(own, ring), grid=grid, rule=OPTIONS.rule)
        np.add.at(seen, block.seen[:, 0], block.seen[:, 1:])
        np.add.at(ious, block.iou_sums[:, 0], block.iou_sums[:, 1:])
    for table, whole_table in ((seen, links.seen), (ious, links.iou_sums)):
        used = np.flatnonzero(table.any(axis=1))
        assert np.column_stack([used, table[used]]).tolist() == whole_table.tolist()


def ring_of(own: dict, others: dict) -> dict:
    return {k: t for k, t in others.items() if any(max(abs(k[0] - r), abs(k[1] - c)) == 1 for r, c in own)}


def test_a_u_whose_arch_lies_in_another_block_counts_its_tiles_once() -> None:
    labels = np.zeros((40, 60), np.int32)
    labels[8:12, 4:50] = labels[20:24, 4:50] = labels[8:24, 46:50] = 1
    grid = Grid("s", 60, 40, 40, 8)
    tiles = perfect_tiles(labels, grid, parts="several")
    assert [len(t) for t in tiles] == [2, 1]
    for features in (stitch_scene(tiles, grid=grid, options=OPTIONS), stitch_in_blocks(tiles, grid, 1, OPTIONS)):
        check_is(features, labels)
        assert features.pieces.num_tiles.tolist() == [2]


# ------------------------------------------------------------------------------------------------ pixels, scores

PAIR = Grid("s", 108, 60, 60, 12)
"Two tiles, cores 0..54 and 54..108."


def boxes_of(features: Features) -> list:
    return masks.boxes_xyxy(features.pieces.runs).tolist()


def areas_of(features: Features) -> list[int]:
    return masks.areas_px(features.pieces.runs).tolist()


@pytest.mark.parametrize(
    ("one", "other", "winner"),
    [
        ((5, 5, 20, 20, 0.6, 1), (10, 10, 30, 30, 0.8, 1), 1),
        ((5, 5, 20, 20, 0.8, 1), (10, 10, 30, 30, 0.6, 1), 0),
        ((5, 5, 20, 20, 0.7, 1), (10, 10, 30, 30, 0.7, 1), 1),
        ((5, 5, 25, 25, 0.7, 1), (10, 10, 30, 30, 0.7, 1), 0),
        ((5, 5, 25, 25, 0.7, 9), (5, 5, 25, 25, 0.7, 2), 1),
    ],
    ids=["score", "score beats area", "area", "first pixel", "class"],
)
@pytest.mark.parametrize("flip", [False, True])
def test_a_pixel_goes_to_one_by_score_area_first_pixel_and_class(one, other, winner: int, flip: bool) -> None:
    pair = [one, other]
    tile = drawn_tile(PAIR, 0, 0, *(pair[::-1] if flip else pair))
    features = stitch_scene([tile], grid=PAIR, options=OPTIONS)
    image = masks.labels_from_runs(features.pieces.runs, window=whole(PAIR))
    left, top, right, bottom, _, class_id = pair[winner]
    won = image[top:bottom, left:right]
    assert won.min() == won.max() > 0
    assert features.pieces.class_ids[won.max() - 1] == class_id
    assert sum(areas_of(features)) == (image > 0).sum()


def test_who_wins_is_decided_for_whole_features() -> None:
    """In the right tile the long one scores less than its rival; over its whole length it scores more."""
    long, rival = (0, 10, 100, 20), (70, 10, 80, 30)
    tiles = [drawn_tile(PAIR, 0, 0, (*long, 0.9, 1)), drawn_tile(PAIR, 0, 1, (*long, 0.5, 1), (*rival, 0.6, 1))]
    features = stitch_scene(tiles, grid=PAIR, options=OPTIONS)
    assert boxes_of(features) == [[0, 10, 100, 20], [70, 20, 80, 30]]
    check_equal(stitch_in_blocks(tiles, PAIR, 1, OPTIONS), features)


@pytest.mark.parametrize("side", [1, 2])
def test_faint_instances_do_not_pull_others_down(side: int) -> None:
    field = (0, 10, 90, 20)
    tiles = [drawn_tile(PAIR, 0, 0, (*field, 0.2, 1)), drawn_tile(PAIR, 0, 1, (*field, 0.9, 1))]
    features = stitch_in_blocks(tiles, PAIR, side, StitchOptions(min_score=0.5))
    assert boxes_of(features) == [[54, 10, 90, 20]]
    assert np.allclose(features.pieces.scores, 0.9)


def test_scores_are_the_mean_by_area() -> None:
    field = (24, 10, 84, 20)
    tiles = [drawn_tile(PAIR, 0, 0, (*field, 0.9, 1)), drawn_tile(PAIR, 0, 1, (*field, 0.5, 1))]
    features = stitch_scene(tiles, grid=PAIR, options=OPTIONS)
    assert np.allclose(features.pieces.scores, [0.7], atol=1e-6)
    assert features.pieces.num_tiles.tolist() == [2]
    assert [SEAM_NAMES[s] for s in features.pieces.seam] == ["merged"]


@pytest.mark.parametrize(
    ("left", "right", "winner"),
    [((23, 7), (84, 3), 7), ((24, 3), (85, 7), 7), ((24, 7), (84, 3), 3), ((24, 3), (84, 7), 3)],
    ids=["more on the left", "more on the right", "a tie", "the other tie"],
)
def test_the_class_with_more_area_wins_and_ties_go_to_the_lowest_id(left, right, winner: int) -> None:
    field = (left[0], 10, right[0], 20)
    tiles = [drawn_tile(PAIR, 0, 0, (*field, 0.9, left[1])), drawn_tile(PAIR, 0, 1, (*field, 0.9, right[1]))]
    for side in (1, 2):
        assert stitch_in_blocks(tiles, PAIR, side, OPTIONS).pieces.class_ids.tolist() == [winner]


def test_what_the_filters_refuse_takes_no_pixels() -> None:
    strong, weak = (10, 10, 30, 30, 0.9, 2), (10, 10, 52, 30, 0.4, 1)
    tile = drawn_tile(PAIR, 0, 0, strong, weak)

    def kept(**options) -> list:
        return boxes_of(stitch_scene([tile], grid=PAIR, options=StitchOptions(**options)))

    assert kept() == [[10, 10, 30, 30], [30, 10, 52, 30]]
    assert kept(class_ids=(1,)) == [[10, 10, 52, 30]]
    assert kept(class_min_score=((2, 0.95),)) == [[10, 10, 52, 30]]
    assert kept(min_score=0.5) == [[10, 10, 30, 30]]
    assert kept(min_score=0.5, class_min_score=((1, 0.4),)) == [[10, 10, 30, 30], [30, 10, 52, 30]]
    assert kept(min_area_px=401) == [[30, 10, 52, 30]]
    assert kept(max_area_px=400) == [[10, 10, 30, 30]]
    assert kept(exclusive=False) == [[10, 10, 52, 30], [10, 10, 30, 30]]  # by class
    assert kept(min_score=0.95) == []


@pytest.mark.parametrize("score", [0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 1.0])
def test_a_score_at_the_threshold_is_kept(score: float) -> None:
    tile = drawn_tile(PAIR, 0, 0, (10, 10, 30, 30, score, 1))
    assert len(stitch_scene([tile], grid=PAIR, options=StitchOptions(min_score=score))) == 1
    assert len(stitch_scene([tile], grid=PAIR, options=StitchOptions(min_score=score + 1e-4))) == 0


def test_area_limits_see_whole_features() -> None:
    field = (24, 10, 84, 20, 0.9, 1)
    tiles = [drawn_tile(PAIR, 0, col, field) for col in (0, 1)]
    for options, count in ((StitchOptions(min_area_px=600), 1), (StitchOptions(max_area_px=599), 0)):
        for side in (1, 2):
            assert len(stitch_in_blocks(tiles, PAIR, side, options)) == count


def test_emptied_features_are_gone_and_indices_stay_dense() -> None:
    under = [(12, 12, 20, 20, 0.5, 1), (50, 30, 58, 40, 0.5, 1)]
    over = [(10, 10, 30, 30, 0.9, 1), (48, 28, 70, 50, 0.9, 1)]
    after = (80, 55, 90, 60, 0.5, 1)
    tiles = [drawn_tile(PAIR, 0, 0, *under, *over), drawn_tile(PAIR, 0, 1, under[1], over[1], after)]
    for side in (1, 2):
        features = stitch_in_blocks(tiles, PAIR, side, OPTIONS)
        assert features.index.tolist() == [0, 1, 2]
        assert boxes_of(features) == [[10, 10, 30, 30], [48, 28, 70, 50], [80, 55, 90, 60]]


def test_of_many_overlapping_copies_one_gets_the_pixels() -> None:
    grid = Grid("s", 60, 60, 60, 12)
    tile = drawn_tile(grid, 0, 0, *[(10, 10, 40, 40, 0.9, 1)] * 100)
    features = stitch_scene([tile], grid=grid, options=OPTIONS)
    assert boxes_of(features) == [[10, 10, 40, 40]]
    every = stitch_scene([tile], grid=grid, options=StitchOptions(exclusive=False))
    assert len(every) == 100
    assert every.index.tolist() == list(range(100))


def test_what_keeps_less_than_half_of_its_pixels_is_dropped() -> None:
    over = (10, 10, 30, 30, 0.9, 1)
    for right, count in ((40, 2), (39, 1)):
        tile = drawn_tile(PAIR, 0, 0, over, (20, 10, right, 20, 0.5, 1))
        for side in (1, 2):
            assert len(stitch_in_blocks([tile], PAIR, side, OPTIONS)) == count
    split = [(40, 8, 52, 22, 0.9, 1), (44, 10, 70, 20, 0.5, 1)]
    tiles = [drawn_tile(PAIR, 0, col, *split) for col in (0, 1)]
    for side in (1, 2):  # the part in the left block is gone; the whole feature keeps enough
        assert boxes_of(stitch_in_blocks(tiles, PAIR, side, OPTIONS)) == [[40, 8, 52, 22], [52, 10, 70, 20]]


QUAD = Grid("s", 108, 108, 60, 12)
"Four tiles whose cores meet in (54, 54)."


@pytest.mark.parametrize("side", [1, 2])
def test_what_one_tile_saw_as_a_whole_comes_from_it(side: int) -> None:
    options = StitchOptions(rule=NEAR)
    tiles = [drawn_tile(PAIR, 0, 0, (40, 10, 57, 20, 0.9, 1)), drawn_tile(PAIR, 0, 1, (40, 12, 57, 22, 0.9, 1))]
    features = stitch_in_blocks(tiles, PAIR, side, options)
    assert boxes_of(features) == [[40, 10, 57, 20]]
    assert areas_of(features) == [170]
    assert features.pieces.num_tiles.tolist() == [2]
    assert [SEAM_NAMES[s] for s in features.pieces.seam] == ["merged"]
    beyond = [drawn_tile(PAIR, 0, 0, (40, 10, 60, 20, 0.9, 1)), drawn_tile(PAIR, 0, 1, (40, 12, 60, 22, 0.9, 1))]
    assert areas_of(stitch_in_blocks(beyond, PAIR, side, options)) == [200], "cut off by the window: cores it is"
    assert boxes_of(stitch_in_blocks(beyond, PAIR, side, options)) == [[40, 10, 60, 22]]


@pytest.mark.parametrize("side", [1, 2])
def test_a_whole_view_reaches_into_cores_whose_tiles_saw_nothing(side: int) -> None:
    seen = (48, 49, 59, 58, 0.9, 1)
    rival = (57, 56, 75, 70, 0.4, 1)
    tiles = [drawn_tile(QUAD, 0, 0, seen), drawn_tile(QUAD, 0, 1, seen), drawn_tile(QUAD, 1, 0)]
    tiles.append(drawn_tile(QUAD, 1, 1, rival))
    features = stitch_in_blocks(tiles, QUAD, side, StitchOptions(rule=NEAR))
    image = masks.labels_from_runs(features.pieces.runs, window=whole(QUAD))
    assert (image[49:58, 48:59] == 1).all()
    assert features.pieces.num_tiles.tolist() == [4, 1]
    assert (image == 2).sum() == (75 - 57) * (70 - 56) - (59 - 57) * (58 - 56)


@pytest.mark.parametrize("side", [1, 2])
def test_what_its_owner_did_not_see_is_dropped(side: int) -> None:
    mostly_mine, mostly_theirs = (50, 10, 58, 20, 0.9, 1), (51, 30, 58, 40, 0.9, 1)
    tiles = [drawn_tile(PAIR, 0, 0, mostly_mine, mostly_theirs), drawn_tile(PAIR, 0, 1)]
    assert boxes_of(stitch_in_blocks(tiles, PAIR, side, StitchOptions(rule=NEAR))) == [[50, 10, 58, 20]]


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_what_only_differs_in_shape_has_one_order(side: int, flip: bool) -> None:
    pair = [(10, 10, 90, 12, 0.9, 1), (10, 10, 12, 90, 0.9, 1)]
    pair = pair[::-1] if flip else pair
    tiles = [drawn_tile(QUAD, row, col, *(p for p in pair if meets(p, QUAD, row, col))) for row, col in FOUR]
    found = stitch_in_blocks(tiles, QUAD, side, OPTIONS)
    check_equal(
        found, stitch_scene([drawn_tile(ONE, 0, 0, *pair)], grid=ONE, options=OPTIONS), but=("num_tiles", "seam")
    )


ONE = Grid("s", 108, 108, 108, 12)
FOUR = [(0, 0), (0, 1), (1, 0), (1, 1)]


def meets(box: tuple, grid: Grid, row: int, col: int) -> bool:
    window = grid.tile(row, col).window
    return box[0] < window.col_end and box[2] > window.col_off and box[1] < window.row_end and box[3] > window.row_off


@pytest.mark.parametrize("side", [1, 2])
def test_overlapping_copies_on_both_sides_of_a_border_are_one(side: int) -> None:
    field = [(30, 10, 80, 30, 0.9, 1)] * 90
    tiles = [drawn_tile(PAIR, 0, col, *field) for col in (0, 1)]
    found = stitch_in_blocks(tiles, PAIR, side, OPTIONS)
    assert boxes_of(found) == [[30, 10, 80, 30]]
    every = stitch_in_blocks(tiles, PAIR, side, StitchOptions(exclusive=False))
    assert boxes_of(every) == [[30, 10, 80, 30]], "each copy of one side agrees with a copy of the other"


def test_what_lies_beside_a_missing_tile_says_so() -> None:
    far, near, inside = (30, 10, 100, 20, 0.9, 1), (30, 30, 40, 40, 0.9, 1), (56, 40, 60, 60, 0.9, 1)
    touching = (40, 50, 54, 60, 0.9, 1)
    seen = drawn_tile(PAIR, 0, 0, far, near, inside, touching)
    features = stitch_scene([seen], grid=PAIR, options=OPTIONS)
    assert boxes_of(features) == [[30, 10, 54, 20], [30, 30, 40, 40], [40, 50, 54, 60]]
    assert [SEAM_NAMES[s] for s in features.pieces.seam] == ["missing", "none", "missing"]
    assert features.pieces.num_tiles.tolist() == [1, 1, 1]
    found = stitch_scene([seen, drawn_tile(PAIR, 0, 1)], grid=PAIR, options=OPTIONS)
    assert [SEAM_NAMES[s] for s in found.pieces.seam] == ["cut", "none", "none"], "the neighbour is there, and saw none"


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_merged_feature_beside_a_missing_tile_says_so(side: int) -> None:
    """Whatever the blocks, and although the missing tile is diagonal to some of its parts."""
    grid = Grid("s", 180, 180, 80, 20)
    rows, cols = grid.shape_yx
    labels = np.zeros((180, 180), np.int32)
    labels[20:30, 10 : grid.tile(0, cols - 1).core.col_off] = 1
    labels[40:70, 40:80] = 2
    labels[150:160, 10:20] = 3
    tiles = [t for t in perfect_tiles(labels, grid) if (t.tile.row, t.tile.col) != (0, cols - 1)]
    assert len(tiles) == rows * cols - 1
    linked = stitch_linked(tiles, grid=grid, options=OPTIONS)[1]
    assert (linked.seen[:, 1] == linked.seen[:, 2]).all(), "what a missing tile did not see is no disagreement"
    features = stitch_in_blocks(tiles, grid, side, OPTIONS)
    assert [SEAM_NAMES[s] for s in features.pieces.seam] == ["missing", "merged", "none"]


def test_no_tiles_at_all() -> None:
    features = stitch_scene([], grid=PAIR, options=OPTIONS)
    assert len(features) == 0
    assert len(features.pieces.runs) == 0
    check_equal(stitch_in_blocks([], PAIR, 1, OPTIONS), features)


# ------------------------------------------------------------------------------------------------ keypoints


def pointed_tiles(boxes: list[tuple], points_NK2: np.ndarray, grid: Grid) -> list[Instances]:
    """What a network of keypoints sees: those in its window, and a faint guess on its rim for those beyond."""
    tiles = []
    for tile in grid.tiles():
        window = tile.window
        low, high = np.array([window.col_off, window.row_off]), np.array([window.col_end, window.row_end])
        seen = [
            k for k, b in enumerate(boxes) if Window(b[0], b[1], b[2] - b[0], b[3] - b[1]).intersect(window).area_px
        ]
        places = np.clip(points_NK2[seen], low, high - 1)
        inside = (places == points_NK2[seen]).all(axis=2)
        points = np.concatenate([places - low, np.where(inside, 0.9, 0.4)[..., None]], axis=2).astype(np.float32)
        corners = np.array([boxes[k] for k in seen], np.float32).reshape(-1, 4) - np.tile(low, 2)
        what = Prediction(corners, np.ones(len(seen), np.int32), np.full(len(seen), SCORE), None, points)
        tiles.append(decode_instances(what, tile, grid=grid, class_ids=range(100)))
    return tiles


@pytest.mark.parametrize("side", [1, 2, 9])
def test_keypoints_come_from_the_tiles_that_own_their_places(side: int) -> None:
    """A box over many tiles, one in four windows and one inside a tile: the truth, whatever the blocks."""
    grid = Grid("s", 150, 150, 64, 24)
    boxes = [(5, 70, 148, 95), (30, 34, 56, 60), (4, 4, 20, 20)]
    points = np.array([[[7, 80], [75, 72], [147, 90]], [[31, 35], [45, 45], [55, 59]], [[5, 5], [9, 9], [19, 19]]])
    options = StitchOptions(exclusive=False)
    features = stitch_in_blocks(pointed_tiles(boxes, points, grid), grid, side, options)
    assert boxes_of(features) == [list(boxes[k]) for k in (2, 1, 0)]
    found = features.pieces.keypoints_NK4
    assert found is not None
    assert found[..., :2].tolist() == points[[2, 1, 0]].tolist()
    assert np.allclose(found[..., 2], 0.9)


def test_a_keypoint_that_no_core_holds_comes_from_the_surest_tile() -> None:
    """Two tiles guess a keypoint beyond the scene; none was seen in a core."""
    grid = Grid("s", 100, 30, 64, 24)
    tiles = pointed_tiles([(20, 5, 90, 25)], np.array([[[50.0, 10.0]]]), grid)
    for tile, score in zip(tiles, (0.3, 0.6), strict=True):
        assert tile.keypoints_NK3 is not None
        tile.keypoints_NK3[:] = (101 + score, 10, score)
    features = stitch_scene(tiles, grid=grid, options=StitchOptions(exclusive=False))
    assert features.pieces.keypoints_NK4 is not None
    assert np.allclose(features.pieces.keypoints_NK4, [[[101.6, 10, 0.6, 0]]])
