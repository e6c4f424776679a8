"""The command `segworker train`, which `pipelines/train.py` is as well."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segworker.cli_common import refuse_lost_output
from segworker.cli_evaluate import add_truth_flags, names_in, truth_options
from segworker.config_flags import Parser, command_parser
from segworker.config_values import ValueRange
from segworker.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from segworker.train.fit import FitPlan
    from segworker.train.split import Split
    from segworker.truth import TruthSet

HELP = """\
Train a model on annotated scenes, on Ray Train. Windows are cut from the scenes on the fly; what is kept for
validation is written down; a training that was killed goes on from its last checkpoint when the same command is given
again."""

EXAMPLES = """\
examples:
  segworker train scene.tif --truth houses.gpkg --model nuclei --init nuclei --output out/houses
  segworker train 's3://bucket/slides/*.tif' --truth s3://bucket/coco.json --model maskrcnn_resnet50_fpn \\
      --init maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth --output s3://bucket/trained/cells --workers 4
  segworker run more.tif --model nuclei --weights out/houses/weights.safetensors --model-options class_names=house

exit codes: 0 done, 1 failed (a loss that is no number, a full disk), 2 usage, annotations or weights that do not
fit."""


def train_command(argv: Sequence[str]) -> int:
    """Train a model on annotated scenes."""
    arguments = parser().parse_args(argv)
    refuse_lost_output(arguments.output)
    plan = make_plan(arguments)
    from segworker.engine.train import train

    record = train(
        plan,
        workers=arguments.workers,
        address=arguments.address,
        cpus=arguments.cpus,
        tensorboard=arguments.tensorboard,
    )
    print(summary(record, plan.output))
    return ExitCode.DONE


def summary(record: dict[str, Any], output: str) -> str:
    """Return the lines that end a training."""
    best = max(record["validation"], key=lambda v: (v["ap"] or 0.0, v["step"]), default=None)
    figures = "none" if best is None or best["ap"] is None else f"AP {best['ap']:.3f}, AP50 {best['ap50']:.3f}"
    taught, kept = (sum(record["objects"][side].values()) for side in ("train", "validate"))
    lines = [
        f"model     {record['model']} ({', '.join(record['classes'])})",
        f"objects   {taught:,} to learn from, {kept:,} kept for validation",
        *(f"truth     {count:,} annotations {fault}" for fault, count in record["annotations"]["faults"].items()),
        *(record["init"] or "").splitlines(),
        f"steps     {record['steps']:,} in {record['seconds']:.0f} s: {record['ended']}",
        f"validated {figures} (step {record['weights_of_step']})",
        f"weights   {output.rstrip('/')}/weights.safetensors",
    ]
    if record["model_options"]:
        told = " ".join(f"{key}={value}" for key, value in record["model_options"].items())
        lines.append(f"use it    --model {record['model']} --model-options {told} --weights FILE")
    return "\n".join(lines)


def make_plan(arguments: argparse.Namespace) -> FitPlan:
    """Return what the flags ask for: scenes found, annotations read, the split drawn or read."""
    from segworker.io.annotations import read_truth
    from segworker.models.registry import build_model
    from segworker.sources.find import find_scenes
    from segworker.train.balance import BalanceConfig
    from segworker.train.fit import FitPlan
    from segworker.train.init import is_bundled
    from segworker.train.loop import TrainConfig
    from segworker.train.windows import WindowConfig

    options = dict(_pair(text, "--model-options") for text in arguments.model_options or ())
    spec = build_model(arguments.model, options).spec
    found = find_scenes(arguments.scenes, spec=spec, bands=_bands(arguments.bands))
    for failure in found.failures:
        print(f"warning: {failure.scene_id}: {failure.error}", file=sys.stderr)
    if not found.scenes:
        raise ConfigError(f"training needs a scene that can be read, got none; the first: {found.failures[0].error}")
    truth = read_truth(arguments.truth, found.scenes, truth_options(arguments))
    for issue in truth.issues[:20]:
        print(f"truth     {issue}", file=sys.stderr)
    annotated = {scene.scene_id for scene in truth.scenes}
    scenes = tuple(scene for scene in found.scenes if scene.scene_id in annotated)
    chosen = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(TrainConfig) if hasattr(arguments, f.name)}
    if chosen["warmup"] is None and chosen["iterations"] is not None:
        chosen["warmup"] = min(TrainConfig().warmup, chosen["iterations"] // 10)
    windows = WindowConfig(
        size_px=arguments.window or -(-512 // spec.stride) * spec.stride,
        between=arguments.between,
        turn=not arguments.upright,
        value_range=_value_range(arguments.value_range),
        bands=_bands(arguments.bands),
    )
    alphas = tuple((name, _number(value)) for name, value in (_pair(t, "--alpha") for t in names_in(arguments.alpha)))
    return FitPlan(
        model=arguments.model,
        options=tuple(sorted(options.items())),
        scenes=scenes,
        truth=truth,
        split=_split(arguments, truth, windows.size_px),
        output=arguments.output if "://" in arguments.output else str(Path(arguments.output).absolute()),
        train=TrainConfig(**{name: value for name, value in chosen.items() if value is not None}),
        windows=windows,
        balance=BalanceConfig(arguments.balance, alphas),
        init=arguments.init,
        init_content=_content(arguments.init) if arguments.init and not is_bundled(arguments.init) else None,
        init_part=arguments.init_part,
        device=arguments.device,
        threads=arguments.threads,
        validate_every=arguments.validate_every,
        patience=arguments.patience,
    )


def parser() -> Parser:
    """Return the command's parser."""
    usage = "SCENE ... --truth FILE --model NAME --output URI [flags]"
    made = command_parser("train", description=HELP, epilog=EXAMPLES, usage=usage)
    made.add_argument("scenes", metavar="SCENE", nargs="+", help="Files, folders, globs, s3:// uris or manifests.")
    made.add_argument("--truth", metavar="FILE", nargs="+", required=True, help="Annotations of the scenes.")
    made.add_argument("--model", metavar="NAME", required=True, help="Registered name or package.module:factory.")
    made.add_argument("--output", metavar="URI", required=True, help="Folder or s3:// prefix; a training each.")
    add_truth_flags(made)
    _add_model_flags(made.add_argument_group("model"))
    _add_data_flags(made.add_argument_group("data"))
    _add_training_flags(made.add_argument_group("training"))
    _add_place_flags(made.add_argument_group("where it runs"))
    return made


def _add_model_flags(group: Any) -> None:  # noqa: ANN401 - argparse keeps the type to itself
    group.add_argument("--model-options", metavar="KEY=VALUE", nargs="*", help="Options of the model.")
    group.add_argument("--init", metavar="NAME|FILE", help="Start from a bundled model's weights, or a file's.")
    group.add_argument("--init-part", choices=("whole", "backbone"), default="whole", help="How much of it. [whole]")


def _add_data_flags(group: Any) -> None:  # noqa: ANN401
    group.add_argument("--split", choices=("auto", "scene", "block"), default="auto", help="[auto: scenes, where many]")
    group.add_argument("--split-file", metavar="FILE", help="A split.json of an earlier training.")
    group.add_argument("--split-seed", metavar="N", type=int, default=0, help="[0]")
    group.add_argument("--validation", metavar="SHARE", type=float, default=0.2, help="Of the objects. [0.2]")
    group.add_argument("--block", metavar="PX", type=int, help="Side of blocks, scene pixels. [twice the window]")
    group.add_argument("--window", metavar="PX", type=int, help="Side of training windows. [512]")
    group.add_argument("--between", metavar="SHARE", type=float, default=0.25, help="Windows anywhere. [0.25]")
    group.add_argument("--upright", action="store_true", help="Do not turn and flip: the scenes have an up.")
    group.add_argument("--bands", metavar="B,B,B", help="Bands of the scenes, from 1.")
    group.add_argument("--value-range", metavar="RANGE", default="dtype", help="dtype, LOW,HIGH, percentile:L,H.")


def _add_training_flags(group: Any) -> None:  # noqa: ANN401
    group.add_argument("--iterations", metavar="N", type=int, help="Of the schedule. [3400]")
    group.add_argument("--stop-after", metavar="N", type=int, help="End early, at this step of the schedule.")
    group.add_argument("--batch-size", metavar="N", type=int, help="Windows of a step and worker. [4]")
    group.add_argument("--learning-rate", metavar="X", type=float, help="At its peak. [0.001]")
    group.add_argument("--schedule", choices=("cosine", "step"), help="[cosine]")
    group.add_argument("--warmup", metavar="N", type=int, help="Steps. [300, at most a tenth]")
    group.add_argument("--clip-norm", metavar="X", type=float, help="Of the gradients. [5]")
    group.add_argument("--ema-decay", metavar="X", type=float, help="Of the averaged weights. [0.998]")
    group.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto", help="[auto: bf16 where it pays]"
    )
    group.add_argument("--seed", metavar="N", type=int, help="[0]")
    group.add_argument("--balance", choices=("fixed", "uncertainty"), default="fixed", help="Of losses. [fixed]")
    group.add_argument("--alpha", metavar="TERM=X,...", help="Weights of loss terms; others have 1.")
    group.add_argument("--validate-every", metavar="N", type=int, default=200, help="Steps. [200]")
    group.add_argument("--patience", metavar="N", type=int, default=0, help="Validations without progress. [no end]")
    group.add_argument("--log-every", metavar="N", type=int, help="Steps. [50]")
    group.add_argument("--checkpoint-every", metavar="N", type=int, help="Steps. [200]")
    group.add_argument("--tensorboard", action="store_true", help="Write events into OUTPUT/tensorboard.")


def _add_place_flags(group: Any) -> None:  # noqa: ANN401
    group.add_argument("--workers", metavar="N", type=int, help="[one for each GPU, else one]")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda. [auto]")
    group.add_argument("--threads", metavar="N", type=int, help="Torch threads of a worker on a CPU.")
    group.add_argument("--address", metavar="ADDRESS", help="Of a Ray cluster.")
    group.add_argument("--cpus", metavar="N", type=int, help="Of a local Ray.")


def _split(arguments: argparse.Namespace, truth: TruthSet, window_px: int) -> Split:
    from segworker.train.split import from_json, split_by_block, split_by_scene

    if arguments.split_file:
        from segworker.io.storage import open_storage

        folder, _, name = arguments.split_file.rpartition("/")
        return from_json(open_storage(folder or ".").read(name), truth)
    by_scene = arguments.split == "scene" or (arguments.split == "auto" and len(truth.scenes) >= 5)
    chosen = {"share": arguments.validation, "seed": arguments.split_seed}
    if by_scene:
        return split_by_scene(truth, **chosen)
    return split_by_block(truth, block_px=arguments.block or 2 * window_px, **chosen)


def _content(source: str) -> bytes | Path:
    """Return a weights file's path, or its content where it lies in an object store."""
    from segworker.io.storage import open_storage

    if source.startswith("s3://"):
        folder, _, name = source.rpartition("/")
        return open_storage(folder).read(name)
    path = Path(source).expanduser()
    if not path.is_file():
        raise ConfigError(f"--init names a model that bundles weights (nuclei) or a file, got {source!r}; check it")
    return path.absolute()


def _pair(text: str, flag: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{flag} takes KEY=VALUE, got {text!r}")
    return key.strip(), value.strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--alpha takes TERM=NUMBER, got {text!r}") from None


def _bands(text: str | None) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in text.split(",")) if text else None
    except ValueError:
        raise ConfigError(f"--bands takes numbers from 1, got {text!r}; write 1,2,3") from None


def _value_range(text: str) -> ValueRange:
    try:
        return ValueRange.parse(text)
    except ValueError as error:
        raise ConfigError(f"--value-range: {error}") from None
