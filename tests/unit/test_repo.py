"""What the repository promises about itself: its flags, its pages, what is uploaded, what is committed."""

import argparse
import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pathspec import PathSpec

from segworker import cli
from segworker.config_flags import make_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
MAX_UPLOAD_BYTES = 40 * 10**6

# A new flag is a promise to users: it is added here on purpose, and none goes without a line in the CHANGELOG.
FLAGS = """
--config --print-config --dry-run
SCENE --manifest --asset --mosaic --mosaic-id --mosaic-crs --bands --value-range --aoi --max-scene-px
--tile --overlap --resolution --resolution-um
--model --weights --model-options --batch-size --precision --device
--min-score --class-min-score --classes --min-area --max-area --min-stuff --min-iou --simplify
--output --table-crs --coco --overview --keep-work --partial-ok --name --notes
--address --cpus --workers --gpus-per-worker --memory --max-failed-tiles --tile-timeout --check-shift --price
--progress --seed --log-level
"""
COMMANDS = [
    *("run", "plan", "stitch", "retry", "train", "evaluate", "models", "sample"),
    *("nightly", "query", "export", "diff"),
    *("files", "status", "compact", "vacuum", "clean", "delete", "version"),
]


def run_parser() -> argparse.ArgumentParser:
    return make_parser(prog="segworker run", description="")


def test_flags_are_pinned() -> None:
    found = [action.option_strings[0] if action.option_strings else "SCENE" for action in run_parser()._actions]
    assert found[1:] == FLAGS.split()  # the first is -h


def test_commands_are_pinned() -> None:
    assert list(cli.COMMANDS) == COMMANDS


@pytest.mark.parametrize("script", ["make_reference", "make_models"])
def test_made_pages_are_up_to_date(script: str) -> None:
    path = ROOT / "docs" / f"{script}.py"
    spec = importlib.util.spec_from_file_location(script, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text("utf-8") == module.page(), "run `make docs`"


# Pages


def code_lines(text: str) -> Iterator[str]:
    """Yield the commands of a page: fenced and indented code, continued lines joined."""
    fenced = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(
        r"^ {4}(?! )(.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    for line in [*"\n".join(fenced).replace("\\\n", " ").splitlines(), *indented]:
        yield line.split("  #")[0].strip()


def commands() -> list[tuple[str, str]]:
    return [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in code_lines(page.read_text("utf-8"))]


def arguments_of_run(words: list[str]) -> list[str] | None:
    """Return what stands behind `segworker run`, `segworker plan` or the script; None for other commands."""
    for i, word in enumerate(words):
        if word.endswith("segment_tiles.py"):
            return words[i + 1 :]
        if word == "segworker" and words[i + 1 : i + 2] in (["run"], ["plan"]):
            return words[i + 2 :]
    return None


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_on_pages_exist(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[:1] == ["make"]:
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert words[1] in targets, page
    for word in words:
        if word.startswith(("pipelines/", "tests/", ".ci/")):
            assert (ROOT / word).exists(), f"{page}: {word} does not exist"
    if "segworker" in words and words.index("segworker") in (0, 2):
        assert words[words.index("segworker") + 1] in COMMANDS, page
    arguments = arguments_of_run(words)
    if arguments is not None:
        flags = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        known = {name for action in run_parser()._actions for name in action.option_strings}
        assert flags <= known, f"{page}: {flags - known} in {line}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_readme_and_ci_run_the_same_test_command() -> None:
    assert "\n    uv run pytest" in (ROOT / "README.md").read_text("utf-8")
    assert "\nuv run pytest" in (ROOT / ".ci" / "run").read_text("utf-8")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    assert any(step.get("run") == ".ci/run" for step in workflow["jobs"]["check"]["steps"])


# What is committed, and what a Ray job uploads


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_lock_file_is_committed() -> None:
    assert "uv.lock" not in {path.name for path in tracked()}


def test_no_large_file_is_committed() -> None:
    for path in tracked():
        limit = 16 * 10**6 if path.suffix == ".safetensors" else 10**6
        assert path.stat().st_size <= limit, path


def test_texts_name_no_machine() -> None:
    pattern = re.compile(r"/(?:work|home|root|Users)/\w+")
    for path in tracked():
        if path.suffix in (".py", ".md", ".toml", ".yml", ".yaml", "") and path != Path(__file__).resolve():
            found = pattern.search(path.read_text("utf-8"))
            assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


def ignored(name: str) -> PathSpec:
    return PathSpec.from_lines("gitignore", (ROOT / name).read_text("utf-8").splitlines())


def test_a_ray_job_uploads_little_but_the_weights() -> None:
    """Ray leaves out what .gitignore and .rayignore in the working directory list."""
    specs = [ignored(".gitignore"), ignored(".rayignore")]
    sent = {
        path.relative_to(ROOT).as_posix(): path.stat().st_size
        for path in tracked()
        if not any(spec.match_file(path.relative_to(ROOT)) for spec in specs)
    }
    assert sum(sent.values()) < MAX_UPLOAD_BYTES
    assert not [name for name in sent if name.startswith(("docs/", "tests/", "infra/", ".")) and name.count("/")]
    assert {"pyproject.toml", "README.md", "LICENSE", "pipelines/segment_tiles.py", "segworker/cli.py"} <= sent.keys()
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("segworker/**/*.safetensors")} <= sent.keys()


@pytest.mark.parametrize("name", ["out/demo/features/part.parquet", ".venv/bin/python", "uv.lock", "__pycache__/a.pyc"])
def test_results_and_environments_are_not_uploaded(name: str) -> None:
    assert any(ignored(file).match_file(name) for file in (".gitignore", ".rayignore"))
