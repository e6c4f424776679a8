"""Annotated scenes -> weights: the script for `ray job submit`, the same as `segworker train`.

With --data it trains on a folder of small images and label images in this process instead;
segworker/models/nuclei/README.md has the command behind the bundled model.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from segworker import cli
from segworker.errors import SegworkerError
from segworker.train.job import TrainJob, measure_job, run_job
from segworker.train.loop import TrainConfig


def parse(arguments: list[str] | None = None) -> tuple[TrainJob, TrainConfig, bool]:
    """Return the job, its numbers, and whether it only measures."""
    default = TrainConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="nuclei", help="registered name or package.module:factory, with a loss()")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/*.png and masks/*.png (labels)")
    parser.add_argument("--output", type=Path, required=True, help="weights file to write, .safetensors")
    parser.add_argument(
        "--heldout", type=Path, help="list of images to keep out; a fixed 15%% is drawn if it is absent"
    )
    parser.add_argument("--iterations", type=int, default=default.iterations)
    parser.add_argument("--stop-after", type=int, help="end early, at this iteration of the schedule")
    parser.add_argument("--batch-size", type=int, default=default.batch_size, help="crops of an iteration")
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate, help="at its peak")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=default.precision)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--checkpoint", type=Path, help="state of the run; default: beside the output")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--measure", action="store_true", help="only measure the weights at --output on --heldout")
    given = parser.parse_args(arguments)
    job = TrainJob(
        data=given.data,
        output=given.output,
        model=given.model,
        heldout=given.heldout,
        checkpoint=given.checkpoint,
        resume=given.resume,
        device=given.device,
    )
    config = TrainConfig(
        iterations=given.iterations,
        stop_after=given.stop_after,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        precision=given.precision,
        seed=given.seed,
    )
    return job, config, given.measure


def main(arguments: list[str] | None = None) -> int:
    """Run the job and return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if "--data" not in given and "--help" not in given:
        return cli.main(["train", *given])
    job, config, measure_only = parse(arguments)
    try:
        if measure_only:
            measure_job(job)
        else:
            run_job(job, config)
    except SegworkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
