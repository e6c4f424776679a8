"""The bundled nuclei model on the images held out from its training, through the whole pipeline, over tile borders."""

from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from segworker import engine
from segworker.config_load import from_flat
from segworker.io.storage import open_storage
from segworker.models import nuclei
from segworker.train.data import load_samples, read_heldout
from segworker.train.evaluate import Found, as_table, score_found

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("tile", "overlap"), [(256, 64), (1024, 128)])
def test_held_out_nuclei_through_the_pipeline(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tile: int, overlap: int
) -> None:
    folder = shared_data / "data/microscopy/dsb2018"
    names = read_heldout(Path(nuclei.__file__).parent / "heldout.txt")
    samples = load_samples(folder, names=names)
    summary = engine.run(
        from_flat(
            scenes=[str(folder / "images" / f"{s.name}.png") for s in samples],
            output=str(tmp_path / "store"),
            tile=tile,
            overlap=overlap,
            min_score=0.05,
            overview=0,
        )
    )
    assert summary.exit_code == 0
    found = found_by_name(tmp_path / "store", summary.record["outputs"]["coco"])
    scores = score_found(samples, [found[s.name] for s in samples])
    with capsys.disabled():
        print(f"\ntile {tile}, overlap {overlap}\n{as_table(scores)}")
    assert scores["all"].ap50 >= 0.70


def found_by_name(store: Path, files: list[str]) -> dict[str, Found]:
    found = {}
    for file in files:
        coco = COCO(open_storage(store).location(file))
        for image in coco.imgs.values():
            annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
            found[Path(image["file_name"]).stem] = Found(
                (image["height"], image["width"]),
                [coco.annToRLE(a) for a in annotations],
                np.array([a["score"] for a in annotations]),
            )
    return found
