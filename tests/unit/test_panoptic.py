"""Stuff: one class for each pixel whatever the tiles, regions whatever the blocks."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segworker.decode import decode_instances
from segworker.errors import PredictionError
from segworker.grid import Grid
from segworker.masks import first_pixels_yx
from segworker.panoptic.blend import NOTHING, StuffTile, blend_core, compact_scores, window_weights
from segworker.panoptic.pieces import Numbering, stuff_pieces
from segworker.panoptic.regions import (
    border_contacts,
    cut_pieces,
    find_regions,
    give_away,
    join_regions,
    new_classes,
    small_contacts,
    whole_areas,
)
from segworker.panoptic.scene import stitch_panoptic
from segworker.panoptic.scores import stuff_of
from segworker.stitch import StitchOptions
from segworker.types import Category, CroppedMasks, Prediction, Tile, Window
from tests.strategies import grids, seeds


def one_hot(classes_HW: np.ndarray, num: int) -> np.ndarray:
    return (classes_HW[None] == np.arange(num)[:, None, None]).astype(np.float32)


def see(scene_CHW: np.ndarray, grid: Grid, change: Callable[[Tile, np.ndarray], np.ndarray] | None = None) -> dict:
    tiles = {}
    for tile in grid.tiles():
        window = tile.window
        scores = scene_CHW[:, window.row_off : window.row_end, window.col_off : window.col_end]
        scores = scores if change is None else change(tile, scores)
        tiles[tile.row, tile.col] = compact_scores(scores, None, tile=tile, grid=grid)
    return tiles


def blend_all(tiles: dict[tuple[int, int], StuffTile], grid: Grid) -> np.ndarray:
    whole = np.full((grid.height, grid.width), 77, np.uint8)
    for tile in grid.tiles():
        core = tile.core
        around = {k: v for k, v in tiles.items() if abs(k[0] - tile.row) < 2 and abs(k[1] - tile.col) < 2}
        whole[core.row_off : core.row_end, core.col_off : core.col_end] = blend_core(
            around, tile.row, tile.col, grid=grid
        )
    return whole


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(4, 30), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_a_perfect_model_is_read_back_on_any_grid(width: int, height: int, tile: int, overlap: int, seed: int) -> None:
    truth = np.random.default_rng(seed).integers(0, 5, (height, width)).astype(np.uint8)
    grid = Grid("s", width, height, tile, min(overlap, tile - 1))
    assert (blend_all(see(one_hot(truth, 5), grid), grid) == truth).all()


def test_invalid_pixels_stay_nothing_and_a_missing_tile_is_nothing() -> None:
    grid = Grid("s", 40, 20, 24, 8)
    truth = np.zeros((20, 40), np.uint8)
    tiles = {}
    for tile in grid.tiles():
        window = tile.window
        valid = np.ones(window.shape_yx, bool)
        valid[0] = False
        scores = one_hot(truth[:, window.col_off : window.col_end], 2)
        tiles[tile.row, tile.col] = compact_scores(scores, valid, tile=tile, grid=grid)
    assert (blend_all(tiles, grid)[0] == NOTHING).all()
    assert (blend_all(tiles, grid)[1:] == 0).all()
    del tiles[0, 1]
    core = grid.tile(0, 1).core
    assert (blend_all(tiles, grid)[:, core.col_off :] == NOTHING).all()
    assert (blend_all(tiles, grid)[1:, : core.col_off] == 0).all()


def test_the_tile_that_sees_further_wins() -> None:
    grid = Grid("s", 96, 32, 64, 32)

    def change(tile: Tile, scores: np.ndarray) -> np.ndarray:
        return one_hot(np.full(scores.shape[1:], tile.col), 2)

    found = blend_all(see(one_hot(np.zeros((32, 96), np.uint8), 2), grid, change), grid)
    assert (found[:, :48] == 0).all()  # the strip is 32 to 64; its middle is the border of the cores
    assert (found[:, 48:] == 1).all()


def test_the_surer_tile_wins_near_the_middle() -> None:
    grid = Grid("s", 96, 32, 64, 32)

    def change(tile: Tile, scores: np.ndarray) -> np.ndarray:
        sure = 0.9 if tile.col == 1 else 0.5
        best = one_hot(np.full(scores.shape[1:], tile.col), 2)
        return best * sure + (1 - best) * (1 - sure)

    found = blend_all(see(one_hot(np.zeros((32, 96), np.uint8), 2), grid, change), grid)
    border = np.flatnonzero(found[5] == 1)[0]
    assert border < 48
    assert (found[:, border:] == 1).all()


def test_weights_fall_to_cut_sides_alone() -> None:
    grid = Grid("s", 100, 30, 40, 10)
    weights = window_weights(grid.tile(0, 1), grid)
    assert weights[0, 0] == 10  # 1 of the cut left side, times the whole ramp of the uncut top
    assert weights[15, 20] == 100
    assert (window_weights(grid.tile(0, 0), grid)[:, 0] == 100).all()


@pytest.mark.parametrize("shape", [(0, 8, 8), (255, 8, 8), (2, 8, 7)])
def test_scores_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    grid = Grid("s", 8, 8, 8, 0)
    with pytest.raises(PredictionError, match="semantic scores must be"):
        compact_scores(np.zeros(shape, np.float32), None, tile=grid.tile(0, 0), grid=grid)


def test_scores_that_are_no_numbers_are_refused() -> None:
    grid = Grid("s", 8, 8, 8, 0)
    with pytest.raises(PredictionError, match="finite"):
        compact_scores(np.full((1, 8, 8), np.nan, np.float32), None, tile=grid.tile(0, 0), grid=grid)


# ------------------------------------------------------------------------------------------------ regions


@st.composite
def cut_maps(draw: st.DrawFn) -> tuple[np.ndarray, list[Window]]:
    """Return a class map and blocks that partition it."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    seed = draw(st.integers(0, 2**32 - 1))
    classes = np.random.default_rng(seed).choice([0, 1, 2, NOTHING], (height, width), p=[0.45, 0.3, 0.15, 0.1])
    cuts = [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=3))}) for size in (height, width)]
    blocks = [
        Window(left, top, right - left, bottom - top)
        for top, bottom in pairwise(cuts[0])
        for left, right in pairwise(cuts[1])
    ]
    return classes.astype(np.uint8), blocks


def expected_regions(classes: np.ndarray) -> np.ndarray:
    """Label by scipy, class by class."""
    labels = np.zeros(classes.shape, np.int64)
    for c in (0, 1, 2):
        own, num = ndimage.label(classes == c)
        labels[own > 0] = own[own > 0] + labels.max()
        assert num >= 0
    return labels


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = np.unique(np.column_stack([a.ravel(), b.ravel()]), axis=0)
    return len(pairs) == len(np.unique(a)) == len(np.unique(b))


def part(image: np.ndarray, window: Window) -> np.ndarray:
    return image[window.row_off : window.row_end, window.col_off : window.col_end]


@settings(deadline=None)
@given(cut_maps())
def test_regions_do_not_depend_on_blocks(case: tuple[np.ndarray, list[Window]]) -> None:
    classes, blocks = case
    found = [find_regions(part(classes, w), w) for w in blocks]
    joined = join_regions([f.border() for f in found])
    whole = np.zeros(classes.shape, np.int64)
    areas = np.zeros(classes.shape, np.int64)
    base = 1_000_000
    for f, j, window in zip(found, joined, blocks, strict=True):
        number = np.arange(len(f.areas)) + base
        base += len(number)
        number[j.numbers] = j.segments + 1
        part(whole, window)[:] = np.concatenate([[0], number])[f.labels_HW]
        part(areas, window)[:] = np.concatenate([[0], whole_areas(f, j)])[f.labels_HW]
    truth = expected_regions(classes)
    assert same_partition(whole, truth)
    inside = truth > 0
    assert (areas[inside] == np.bincount(truth.ravel())[truth[inside]]).all()


def give_all_away(classes: np.ndarray, blocks: list[Window], min_area: int) -> np.ndarray:
    found = [find_regions(part(classes, w), w) for w in blocks]
    borders = [f.border() for f in found]
    joined = join_regions(borders)
    tables = [small_contacts(f, j, min_area) for f, j in zip(found, joined, strict=True)]
    told = [t for _, t in tables]
    segments = new_classes(np.concatenate([*told, border_contacts(borders, joined, min_area)]))
    result = np.zeros_like(classes)
    for f, j, (inner, _), window in zip(found, joined, tables, blocks, strict=True):
        part(result, window)[:] = give_away(f, j, new_classes(inner), segments)
    return result


@settings(deadline=None)
@given(cut_maps(), st.integers(1, 8))
def test_small_regions_go_to_their_longest_neighbour_whatever_the_blocks(
    case: tuple[np.ndarray, list[Window]], min_area: int
) -> None:
    classes, blocks = case
    result = give_all_away(classes, blocks, min_area)
    assert ((result == NOTHING) == (classes == NOTHING)).all()
    truth = expected_regions(classes)
    areas = np.bincount(truth.ravel())
    padded = np.pad(truth, 1)
    for region in range(1, len(areas)):
        where = truth == region
        borders = np.zeros(3, np.int64)
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            beside = padded[1 + dy : padded.shape[0] - 1 + dy, 1 + dx : padded.shape[1] - 1 + dx][where]
            stays = (beside != region) & (beside > 0) & (areas[beside] >= min_area)
            for other in beside[stays]:
                borders[classes[truth == other][0]] += 1
        small = areas[region] < min_area and borders.any()
        wanted = int(borders.argmax()) if small else int(classes[where][0])
        assert (result[where] == wanted).all()


@settings(deadline=None)
@given(cut_maps(), st.integers(2, 9))
def test_pieces_are_regions_in_cells_whatever_the_blocks(case: tuple[np.ndarray, list[Window]], cell: int) -> None:
    classes, blocks = case
    found = [find_regions(part(classes, w), w) for w in blocks]
    joined = join_regions([f.border() for f in found])
    whole = np.zeros(classes.shape, np.int64)
    keys: dict[tuple[int, int], int] = {}
    for k, (f, j, window) in enumerate(zip(found, joined, blocks, strict=True)):
        labels, regions, cells = cut_pieces(f, cell_px=cell)
        firsts = [int(np.flatnonzero(labels.ravel() == n + 1)[0]) for n in range(len(regions))]
        assert firsts == sorted(firsts)
        number = -1 - k * 100_000 - np.arange(len(f.areas))
        number[j.numbers] = j.segments
        ids = [keys.setdefault((int(number[r]), int(c)), len(keys) + 1) for r, c in zip(regions, cells, strict=True)]
        part(whole, window)[:] = np.array([0, *ids])[labels]
    truth = expected_regions(classes)
    rows, cols = np.indices(classes.shape) // cell
    expected = np.where(truth > 0, (truth * 1000 + rows) * 1000 + cols, 0)
    assert same_partition(whole, expected)


# ------------------------------------------------------------------------------------------------ things and stuff


@settings(deadline=None, max_examples=30)
@given(grids(max_side=48), seeds, st.integers(3, 20))
def test_each_pixel_belongs_to_one_feature(grid: Grid, seed: int, cell: int) -> None:
    """Things overlap, windows disagree about stuff: still no pixel is in two features, and none in none."""
    rng = np.random.default_rng(seed)
    tiles, stuff = {}, {}
    for tile in grid.tiles():
        shape = tile.window.shape_yx
        count = int(rng.integers(0, 4))
        corners = np.column_stack([rng.integers(0, shape[1], count), rng.integers(0, shape[0], count)])
        masks = tuple(rng.random((shape[0] - y, shape[1] - x)) < 0.7 for x, y in corners.tolist())
        prediction = Prediction(
            np.column_stack([corners, np.full((count, 2), shape[::-1])]).astype(np.float32),
            rng.integers(1, 3, count).astype(np.int32),
            rng.uniform(0.3, 1, count).astype(np.float32),
            CroppedMasks(masks, corners),
        )
        key = tile.row, tile.col
        tiles[key] = decode_instances(prediction, tile, grid=grid, class_ids={1, 2})
        stuff[key] = compact_scores(rng.random((3, *shape)), None, tile=tile, grid=grid)
    found, _, segments = stitch_panoptic(
        tiles, stuff, grid=grid, options=StitchOptions(), class_ids=(3, 4, 5), min_stuff_px=4, cell_px=cell
    )
    runs = found.pieces.runs
    covered = np.zeros((grid.height, grid.width), int)
    for row, start, stop in zip(runs.rows, runs.starts, runs.stops, strict=True):
        covered[row, start:stop] += 1
    assert (covered == 1).all()
    first = first_pixels_yx(runs).astype(np.int64)
    shared = segments.of_places((first[:, 0] << 32) + first[:, 1])
    assert (found.pieces.class_ids[shared >= 0] > 2).all()
    for segment in np.unique(shared[shared >= 0]):
        assert len(np.unique(found.pieces.class_ids[shared == segment])) == 1


def test_a_tile_counts_once_for_a_region_that_closes_in_another_block() -> None:
    """A U whose legs lie in the upper block: they are one part of it, and one feature of three tiles in all."""
    grid = Grid("s", 8, 8, 4, 0)
    classes = np.full((8, 8), 0, np.uint8)
    classes[:4, 1] = classes[:4, 3] = classes[4, 1:5] = 1
    regions = [Window(0, 0, 8, 4), Window(0, 4, 8, 4)]
    found = [find_regions(classes[r.slices_in(Window(0, 0, 8, 8))], r) for r in regions]
    joined = join_regions([f.border() for f in found])
    numbering = Numbering(0, 1 + max(int(j.segments.max()) for j in joined), grid)
    ground = [
        stuff_pieces(f, j, block=k, class_ids=(3, 4), numbering=numbering, options=StitchOptions())
        for k, (f, j) in enumerate(zip(found, joined, strict=True))
    ]
    upper, lower = (p.take(np.flatnonzero(p.class_ids == 4)) for p in ground)
    assert len(upper) == len(lower) == 1
    assert upper.features.tolist() == lower.features.tolist()
    assert (upper.num_tiles.tolist(), lower.num_tiles.tolist()) == ([1], [2])


def test_a_coarse_lattice_is_stretched_over_the_padded_window() -> None:
    grid = Grid("s", 10, 6, 16, 0)
    scores = np.zeros((3, 2, 4), np.float16)  # 16 x 8 pixels at stride 4, of which the window sees 10 x 6
    scores[0] = 1.0  # things: their channel does not count
    scores[1, :, :2], scores[2, :, 2:] = 0.6, 0.6
    prediction = Prediction(
        np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), None, None, scores, semantic_class_ids=np.array([0, 7, 9])
    )
    categories = (Category(1, "house"), Category(7, "grass", isthing=False), Category(9, "water", isthing=False))
    found = stuff_of(prediction, grid.tile(0, 0), grid=grid, categories=categories, stride=8)
    assert (found.best_HW[:, :8] == 0).all()
    assert (found.best_HW[:, 8:] == 1).all()


@pytest.mark.parametrize("given_ids", [None, [0, 7]])
def test_scores_without_a_channel_for_each_stuff_class_are_refused(given_ids: list[int] | None) -> None:
    ids = None if given_ids is None else np.array(given_ids)
    prediction = Prediction(
        np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), None, None, np.zeros((2, 4, 4)), semantic_class_ids=ids
    )
    categories = (Category(1, "house"), Category(7, "grass", isthing=False), Category(9, "water", isthing=False))
    grid = Grid("s", 4, 4, 4, 0)
    with pytest.raises(PredictionError, match="one channel for each class"):
        stuff_of(prediction, grid.tile(0, 0), grid=grid, categories=categories)
