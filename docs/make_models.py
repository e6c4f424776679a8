"""Write docs/models.md from the registry. `--check` only compares."""

import sys
from pathlib import Path

from segworker.models.registry import ModelEntry, list_models

PAGE = Path(__file__).parent / "models.md"
MODELS = Path(__file__).parents[1] / "segworker" / "models"
INTRODUCTION = """\
# Models

<!-- Made by `make docs` from the registry. -->

    segworker run SCENE --output URI --model NAME --weights FILE

Parameters are the reference's; a test counts them. The page behind a name tells the paper, the input, and what was
compared with the reference. Published figures are their makers', measured on images resized by their own rule. Weights
are downloaded by you, under their own licence; only those of `nuclei` are part of this package.

| name | tasks | parameters | official file | published | licence |
|---|---|---|---|---|---|
"""


def row(entry: ModelEntry) -> str:
    """Return an entry's line of the table."""
    folder = _package(entry)
    cells = [
        f"[`{entry.name}`](../segworker/models/{folder}/README.md)",
        ", ".join(entry.tasks),
        f"{entry.num_parameters:,}",
        "bundled" if entry.bundled else f"`{entry.official}`" if entry.official else "none tried",
        entry.published or "",
        entry.licence,
    ]
    return "| " + " | ".join(cells) + " |\n"


def _package(entry: ModelEntry) -> str:
    """Return the folder of `segworker.models` whose page lists an entry."""
    pages = sorted(MODELS.glob("*/README.md"))
    listing = [page.parent.name for page in pages if f"\n| `{entry.name}` |" in page.read_text("utf-8")]
    return listing[0] if listing else entry.name


def page() -> str:
    """Return the whole page."""
    return INTRODUCTION + "".join(row(entry) for entry in list_models())


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), "utf-8")
    elif page() != PAGE.read_text("utf-8"):
        sys.exit(f"{PAGE} is older than the registry; run `make docs`")
