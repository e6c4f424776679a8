"""Imports go one way: a module imports its own layer and those below it, torch starts at L3, ray is engine/'s alone."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "segworker"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400

# The first part of a module's name behind `segworker.`; the longest match counts.
LAYERS = {
    0: ("errors", "types", "schema", "jit", "killpoints", "config", "config_values", "config_load", "config_flags"),
    1: (
        "grid",
        "blocks",
        "sheets",
        "geo",
        "geodesy",
        "masks",
        "decode",
        "polygons",
        "fragments",
        "seams",
        "stitch",
        "panoptic",
        "metrics",
        "agreement",
        "coverage",
        "straight",
        "truth",
        "rasterise",
    ),
    2: ("io", "sources"),
    3: ("models",),
    4: ("train", "evaluate", "report", "query", "synthetic"),
    5: (
        *("engine", "cli", "cli_common", "cli_evaluate", "cli_nightly", "cli_query", "cli_train", "cli_upkeep"),
        "__main__",
    ),
}
FIRST_LAYER = {"torch": 3, "torchvision": 3, "transformers": 3, "safetensors": 3}
IO_LIBRARIES = {"rasterio", "pyogrio", "boto3", "botocore", "obstore", "deltalake", "requests", "urllib3", "PIL"}


def layer_of(module: str) -> int | None:
    """Return the layer of `segworker.a.b`, None for the bare package or a module without a layer."""
    part = module.split(".")[1] if "." in module else ""
    return next((layer for layer, names in LAYERS.items() if part in names), None)


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Yield every imported module, those inside functions included; `from segworker import x` counts as segworker.x."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module
            yield from ((f"segworker.{a.name}" for a in node.names) if node.module == "segworker" else [node.module])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_its_layer_and_those_before_it(path: Path) -> None:
    name = name_of(path)
    if name == "segworker":
        return  # it names what it opens; that importing it loads nothing is tested below
    layer = layer_of(name)
    assert layer is not None, f"{name} has no layer: add it to LAYERS"
    for imported in imports_of(path):
        top = imported.split(".")[0]
        if top == "segworker" and imported != "segworker":
            other = layer_of(imported)
            assert other is not None, f"{name} imports {imported}, which has no layer"
            assert other <= layer, f"{name} (L{layer}) imports {imported} (L{other})"
        assert layer >= FIRST_LAYER.get(top, 0), f"{name} (L{layer}) imports {top}, which starts at L{FIRST_LAYER[top]}"
        assert top != "ray" or name.startswith("segworker.engine"), f"{name} imports ray: only engine/ may"
        assert layer >= 2 or top not in IO_LIBRARIES, f"{name} (L{layer}) imports {top}: L0 and L1 do no IO"


def test_no_cycles() -> None:
    modules = {name_of(path) for path in MODULES}
    edges = {name_of(path): {i for i in imports_of(path) if i in modules} - {name_of(path)} for path in MODULES}
    while leaves := [name for name, targets in edges.items() if not targets & edges.keys()]:
        for name in leaves:
            del edges[name]
    assert not edges, f"modules import each other in a circle: {sorted(edges)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_stay_small(path: Path) -> None:
    num_lines = len(path.read_text("utf-8").splitlines())
    assert num_lines <= MAX_LINES, f"{name_of(path)} has {num_lines} lines: split it by what its parts are about"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("segworker", ["numpy", "pyarrow", "segworker.errors"]),
        ("segworker.query.store", ["torch", "ray", "rasterio", "geopandas", "duckdb"]),
        ("segworker.cli", ["torch", "ray", "numpy", "rasterio", "pydantic_settings"]),
        ("segworker.config_load", ["torch", "ray", "numpy", "rasterio"]),
        ("segworker.stitch", ["torch", "ray", "rasterio"]),
        ("segworker.engine", ["torch"]),
        ("segworker.io.storage", ["torch", "ray"]),
    ],
)
def test_light_modules_load_nothing_heavy(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
