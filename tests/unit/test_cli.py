import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import segworker
from segworker import cli, cli_common
from segworker.config import JobConfig
from segworker.errors import CommitConflict, ConfigError, SceneError, WeightsError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SEGWORKER_") or name == cli_common.RAY_JOB_VARIABLE]:
        monkeypatch.delenv(name)


class FakeEngine(SimpleNamespace):
    """Records what it was asked to do; raises or returns what a test puts in."""

    def __init__(self) -> None:
        super().__init__(ran=[], planned=[], exit_code=0, error=None)

    def run(self, config: JobConfig) -> SimpleNamespace:
        self.ran.append(config)
        if self.error:
            raise self.error
        return SimpleNamespace(exit_code=self.exit_code, text="ran")

    def plan(self, config: JobConfig) -> SimpleNamespace:
        self.planned.append(config)
        return SimpleNamespace(text="planned")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    monkeypatch.setitem(sys.modules, "segworker.engine", fake)
    monkeypatch.setattr(segworker, "engine", fake, raising=False)
    return fake


def test_run_hands_the_configuration_to_the_engine(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "run",
        "a.tif",
        "--tile",
        "512",
        "b.tif",
        "--no-coco",
        "--model-options",
        "a=1",
        "--model-options",
        "b=x",
    ]
    assert cli.main(arguments) == 0
    (config,) = engine.ran
    assert config.inputs.scenes == ("a.tif", "b.tif")  # flags may stand between scenes
    assert config.grid.tile == 512
    assert not config.output.coco
    assert config.model.model_options == {"a": 1, "b": "x"}
    assert capsys.readouterr().out == "ran\n"


def test_the_engines_exit_code_is_the_commands(engine: FakeEngine) -> None:
    engine.exit_code = 3
    assert cli.main(["run", "a.tif"]) == 3


@pytest.mark.parametrize("arguments", [["plan", "a.tif"], ["run", "a.tif", "--dry-run"]])
def test_plan_runs_nothing(arguments: list[str], engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    assert not engine.ran
    assert engine.planned[0].inputs.scenes == ("a.tif",)
    assert capsys.readouterr().out == "planned\n"


@pytest.mark.parametrize(
    ("raised", "code"),
    [(ConfigError("c"), 2), (WeightsError("w"), 2), (SceneError("s"), 1), (CommitConflict("b"), 4)],
)
def test_errors_become_one_line_and_an_exit_code(
    raised: Exception, code: int, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.error = raised
    assert cli.main(["run", "a.tif"]) == code
    assert capsys.readouterr().err == f"error: {raised}\n"


def test_debug_shows_the_traceback(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.error = SceneError("unreadable")
    assert cli.main(["run", "a.tif", "--log-level", "debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_not_hidden(engine: FakeEngine) -> None:
    engine.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "a.tif"])


def test_interrupt(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.error = KeyboardInterrupt()
    assert cli.main(["run", "a.tif"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "there is no command rnu; did you mean run?"),
        (["run", "a.tif", "--tlie", "3"], "there is no flag --tlie; did you mean --tile?"),
        (["run", "a.tif", "--min-scor=3"], "there is no flag --min-scor; did you mean --min-score?"),
        (["run", "--til", "3", "a.tif"], "there is no flag --til; did you mean --tile?"),
        (["run", "a.tif", "--tile"], "argument --tile: expected one argument; `segworker run --help` lists the flags"),
        (["run", "--tile", "3"], "a run needs at least one scene, got none; name files"),
        (["plan", "--output", "x"], "a run needs at least one scene"),
        (["run", "a.tif", "--config", "no.yaml"], "no.yaml"),
        (["files"], "the following arguments are required: STORE; `segworker files --help`"),
        (["version", "now"], "unrecognized arguments: now"),
    ],
)
def test_usage_errors(
    arguments: list[str], message: str, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert not engine.ran


# The demo


def test_no_arguments_run_the_demo(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGWORKER_OUTPUT__OUTPUT", "s3://production/store")
    monkeypatch.setenv("SEGWORKER_ENGINE__CPUS", "2")
    assert cli.main(["run"]) == 0
    (config,) = engine.ran
    assert [Path(scene).name for scene in config.inputs.scenes] == ["ihc.png"]
    assert config.grid.tile == 256  # several tiles, so that seams occur
    assert config.model.model == "nuclei"
    assert config.output.output == "out/demo"  # never into a store that the environment names
    assert config.engine.cpus == 2


def test_the_demos_picture_is_shipped() -> None:
    assert cli.demo_scene().stat().st_size > 100_000


def test_scenes_from_the_environment_are_not_the_demo(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGWORKER_INPUTS__SCENES", "s3://bucket/scenes/")
    assert cli.main(["run"]) == 0
    assert engine.ran[0].inputs.scenes == ("s3://bucket/scenes/",)


def test_a_job_file_without_scenes_is_not_the_demo(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text("grid: {tile: 3}")
    monkeypatch.setenv("SEGWORKER_CONFIG", str(tmp_path / "job.yaml"))
    assert cli.main(["run"]) == 2
    assert not engine.ran


# In a Ray job


@pytest.mark.parametrize(
    ("output", "code"), [("out/store", 2), ("s3://bucket/store", 0), ("/mnt/shared/store", 0), ("file:///mnt/store", 0)]
)
def test_a_ray_job_may_not_write_into_its_working_directory(
    output: str, code: int, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cli_common.RAY_JOB_VARIABLE, "{}")
    assert cli.main(["run", "a.tif", "--output", output]) == code
    assert len(engine.ran) == (code == 0)


# Printing


def test_print_config_can_be_fed_back(engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["run", "a.tif", "--tile", "512", "--min-area", "3.5m2", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert not engine.ran
    assert yaml.safe_load(printed)["grid"]["tile"] == 512
    (tmp_path / "job.yaml").write_text(printed)
    assert cli.main(["run", "--config", str(tmp_path / "job.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert cli.main(["run", "--config", str(tmp_path / "job.yaml"), "b.tif", "--tile", "none"]) == 0
    assert engine.ran[0].inputs.scenes == ("b.tif",)
    assert engine.ran[0].grid.tile is None


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            cli.main([name, "--help"])
        assert caught.value.code == 0
        assert f"usage: segworker {name}" in capsys.readouterr().out
    assert cli.main([]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {name} " in overview for name in cli.COMMANDS)


def test_help_of_run_shows_every_flag_with_its_default_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in ["--min-score SCORE", "[out/store]", "[7d]", "--coco, --no-coco", "(1%)", "exit codes: 0 done"]:
        assert part in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"segworker {cli.package_version()}\n" * 2


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["name", "tasks", "parameters"]
    assert any(line.startswith("nuclei ") for line in lines)


def test_table() -> None:
    assert cli_common.table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"


# The script and the start-up time


def test_the_pipeline_script_finds_the_package_without_an_installation(tmp_path: Path) -> None:
    script = ROOT / "pipelines" / "segment_tiles.py"
    command = [sys.executable, str(script), "a.tif", "--print-config"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["inputs"]["scenes"] == ["a.tif"]
    done = subprocess.run([*command, "--tlie"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: there is no flag --tlie; did you mean --tile?\n"


def test_help_comes_at_once() -> None:
    """CPU seconds, the best of three, because the machine may be busy."""
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "segworker.cli"], check=True, capture_output=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        time.sleep(0.01)
    assert min(seconds) < 1.0


def test_samples_are_numbered_and_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", str(tmp_path), "--count", "2", "--size", "64", "--seed", "5"]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["nuclei-01.tif", "aerial-01.tif", "nuclei-02.tif", "aerial-02.tif"]
    one, two = ((tmp_path / "scenes" / name).read_bytes() for name in ("nuclei-01.tif", "nuclei-02.tif"))
    assert one != two
    assert (tmp_path / "truth" / "aerial-02.geojson").is_file()
    assert cli.main(["sample", str(tmp_path), "--count", "0"]) == 2
