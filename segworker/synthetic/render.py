"""Pictures of painted scenes, with their truth: the sample data of `segworker sample`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_masks
from rasterio import features
from rasterio.transform import Affine

from segworker import masks
from segworker.synthetic.paint import write_raster
from segworker.synthetic.scenes import make_scene
from segworker.synthetic.truth import TruthScene
from segworker.types import Window

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

SAMPLE_CRS = "EPSG:32636"
SAMPLE_ORIGIN = (453_600.0, 36_900.0)
"Easting and northing of the aerial sample's upper left corner, metres."
SAMPLE_PIXEL_M = 0.3
SAMPLE_PIXEL_UM = 0.5


def sample(folder: Path, seed: int = 0, *, size_px: int = 2048, suffix: str = "") -> list[Path]:
    """Write seeded scenes into `folder`/scenes and their truth into `folder`/truth; files there are overwritten.

    scenes/nuclei.tif (a stained tissue section, RGB, 0.5 um per pixel) and scenes/aerial.tif (an orthomosaic, RGB, with
    a CRS); for each, truth/<name>.tif (labels, 0 is background), truth/<name>.json (COCO, RLE in pixels) and, for the
    aerial scene, truth/aerial.geojson (polygons in map coordinates).

    `suffix` is put behind every name.

    Returns:
        The paths of the two scenes.
    """
    scenes, truth = folder / "scenes", folder / "truth"
    for path in (scenes, truth):
        path.mkdir(parents=True, exist_ok=True)
    micrograph, aerial = make_scene("nuclei", size_px, seed), make_scene("panoptic", size_px, seed)
    map_transform = Affine(SAMPLE_PIXEL_M, 0, SAMPLE_ORIGIN[0], 0, -SAMPLE_PIXEL_M, SAMPLE_ORIGIN[1])
    per_cm = 10_000 / SAMPLE_PIXEL_UM
    tags = {"TIFFTAG_XRESOLUTION": per_cm, "TIFFTAG_YRESOLUTION": per_cm, "TIFFTAG_RESOLUTIONUNIT": 3}
    write_raster(scenes / f"nuclei{suffix}.tif", render_nuclei(micrograph), tags=tags)
    write_raster(scenes / f"aerial{suffix}.tif", render_aerial(aerial), crs=SAMPLE_CRS, transform=map_transform)
    write_raster(truth / f"nuclei{suffix}.tif", micrograph.labels_HW[None].astype(np.uint32))
    write_raster(
        truth / f"aerial{suffix}.tif", aerial.labels_HW[None].astype(np.uint32), crs=SAMPLE_CRS, transform=map_transform
    )
    write_coco(truth / f"nuclei{suffix}.json", micrograph, file_name=f"nuclei{suffix}.tif")
    write_coco(truth / f"aerial{suffix}.json", aerial, file_name=f"aerial{suffix}.tif")
    write_geojson(truth / f"aerial{suffix}.geojson", aerial, crs=SAMPLE_CRS, transform=map_transform)
    return [scenes / f"nuclei{suffix}.tif", scenes / f"aerial{suffix}.tif"]


def render_nuclei(scene: TruthScene) -> Image:
    """Return (3, H, W) uint8 that looks like tissue stained with haematoxylin and eosin."""
    rng = np.random.default_rng([scene.seed, 11])
    shape_yx = scene.labels_HW.shape
    tissue = _smooth(rng, shape_yx, 90) * 0.6 + _smooth(rng, shape_yx, 18) * 0.4
    eosin = np.clip(0.35 + 0.35 * tissue, 0.05, 0.9)
    depth = np.clip(rng.normal(1.0, 0.22, scene.num_objects + 1), 0.5, 1.6).astype(np.float32)
    chromatin = 1 + 0.35 * _smooth(rng, shape_yx, 4)
    soft = _blur(np.where(scene.labels_HW > 0, depth[scene.labels_HW], 0), 2)
    rim = np.where(_borders(scene.labels_HW), 0.25, 0)
    haematoxylin = np.clip(0.75 * soft * chromatin + rim * (soft > 0.2), 0, 2)
    # Beer-Lambert absorption of the two dyes in red, green and blue.
    dyes = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], np.float32)
    density = haematoxylin[None] * dyes[0][:, None, None] + eosin[None] * dyes[1][:, None, None]
    return _to_bytes(245 * np.exp(-density) + rng.normal(0, 3, (3, *shape_yx)))


def render_aerial(scene: TruthScene) -> Image:
    """Return (3, H, W) uint8 that looks like a town from above: roofs, crowns and cars with shadows on the ground."""
    rng = np.random.default_rng([scene.seed, 12])
    shape_yx = scene.labels_HW.shape
    colours = np.full((max(c.id for c in scene.categories) + 1, 3), 120, np.float32)
    names = {c.name: c.id for c in scene.categories}
    looks = {
        "building": (164, 118, 100),
        "tree": (46, 84, 38),
        "car": (175, 180, 188),
        "grass": (112, 132, 74),
        "water": (52, 82, 104),
        "pavement": (146, 142, 134),
    }
    for name, colour in looks.items():
        if name in names:
            colours[names[name]] = colour
    ground = scene.stuff_HW if scene.stuff_HW is not None else np.full(shape_yx, len(colours) - 1)
    image = colours[ground] + 16 * _smooth(rng, shape_yx, 6)[..., None] + 14 * _smooth(rng, shape_yx, 60)[..., None]
    things = scene.labels_HW > 0
    shadow = np.zeros(shape_yx, bool)
    for step in range(2, 8, 2):
        shadow[step:, step:] |= things[:-step, :-step]
    image[shadow & ~things] *= 0.62
    tint = rng.normal(0, 20, (scene.num_objects + 1, 1)) + rng.normal(0, 8, (scene.num_objects + 1, 3))
    own = colours[scene.class_ids] + tint.astype(np.float32)
    texture = 1 + 0.10 * _smooth(rng, shape_yx, 5)[..., None]
    image = np.where(things[..., None], own[scene.labels_HW] * texture, image)
    image[_borders(scene.labels_HW) & things] *= 0.8
    return _to_bytes(np.moveaxis(image + rng.normal(0, 4, (*shape_yx, 3)), -1, 0))


def write_coco(path: Path, scene: TruthScene, *, file_name: str) -> Path:
    """Write the truth as COCO JSON with compressed RLE; annotation ids are the labels."""
    height, width = scene.labels_HW.shape
    runs = masks.runs_from_labels(scene.labels_HW, scene.num_objects, window=Window(0, 0, width, height))
    boxes, areas, counts = masks.boxes_xyxy(runs).tolist(), masks.areas_px(runs).tolist(), _column_counts(scene)
    annotations = []
    for i in range(scene.num_objects):
        if not areas[i]:
            continue
        left, top, right, bottom = boxes[i]
        rle = coco_masks.frPyObjects({"size": [height, width], "counts": counts[i]}, height, width)
        annotations.append(
            {
                "id": i + 1,
                "image_id": 1,
                "category_id": int(scene.class_ids[i + 1]),
                "bbox": [left, top, right - left, bottom - top],
                "area": areas[i],
                "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
            }
        )
    categories = [{"id": c.id, "name": c.name} for c in scene.categories if c.isthing]
    images = [{"id": 1, "file_name": file_name, "width": width, "height": height}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_geojson(path: Path, scene: TruthScene, *, crs: str, transform: Affine) -> Path:
    """Write the truth's polygons in map coordinates; the CRS is named as GDAL reads it back."""
    names = {c.id: c.name for c in scene.categories}
    collection = [
        {
            "type": "Feature",
            "properties": {"label": int(label), "class_name": names[int(scene.class_ids[int(label)])]},
            "geometry": shape,
        }
        for shape, label in features.shapes(
            scene.labels_HW, mask=scene.labels_HW > 0, connectivity=8, transform=transform
        )
    ]
    name = "urn:ogc:def:crs:" + crs.replace(":", "::")
    member = {"type": "name", "properties": {"name": name}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": member, "features": collection}))
    return path


def _column_counts(scene: TruthScene) -> list[list[int]]:
    """Return for each object the lengths of its runs down the columns, as COCO counts them: background first."""
    height, width = scene.labels_HW.shape
    runs = masks.runs_from_labels(scene.labels_HW.T, scene.num_objects, window=Window(0, 0, height, width))
    column = runs.rows.astype(np.int64) * height
    bounds = np.stack([column + runs.starts, column + runs.stops], axis=1)
    found = []
    for first, last in zip(runs.offsets[:-1], runs.offsets[1:], strict=True):
        places = bounds[first:last].ravel()
        # Runs that go on at the top of the next column are one run.
        inner = places[1:-1].reshape(-1, 2)
        apart = inner[inner[:, 0] != inner[:, 1]].ravel()
        ends = np.concatenate([[0], places[:1], apart, places[-1:], [height * width]])
        found.append(np.diff(ends).tolist())
    return found


def _borders(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return the pixels whose right or lower neighbour has another label, and those neighbours."""
    borders = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    borders[1:] |= down
    borders[:-1] |= down
    borders[:, 1:] |= right
    borders[:, :-1] |= right
    return borders


def _smooth(rng: np.random.Generator, shape_yx: tuple[int, int], scale_px: int) -> Floats:
    """Return noise in about -1..1 whose patches are `scale_px` wide."""
    rows, cols = (n // scale_px + 3 for n in shape_yx)
    coarse = rng.uniform(-1, 1, (rows, cols)).astype(np.float32)
    ys, xs = (np.arange(n, dtype=np.float32) / scale_px for n in shape_yx)
    (iy, fy), (ix, fx) = ((s.astype(int), s - np.floor(s)) for s in (ys, xs))
    across = coarse[:, ix] * (1 - fx) + coarse[:, ix + 1] * fx
    return np.asarray(across[iy] * (1 - fy)[:, None] + across[iy + 1] * fy[:, None], np.float32)


def _blur(image: Floats, passes: int) -> Floats:
    """Return the image blurred by a 3 x 3 tent, several times."""
    for _ in range(passes):
        padded = np.pad(image, 1, mode="edge")
        rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
        image = np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16, np.float32)
    return image


def _to_bytes(image: NDArray[np.floating]) -> Image:
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)
