"""Write docs/reference/config.md from the configuration tree. `--check` only compares."""

import sys
from pathlib import Path

from segworker.config import sections
from segworker.config_flags import default_text
from segworker.config_load import flag, variable

PAGE = Path(__file__).parent / "reference" / "config.md"
INTRODUCTION = """\
# Configuration

<!-- Made by `make docs` from segworker/config.py. -->

A job is one tree of sections. Each key is a flag, a key of a YAML job file and an environment variable:

| where | how |
|---|---|
| flag | `--tile 512` |
| environment | `SEGWORKER_GRID__TILE=512` |
| job file | `grid: {tile: 512}`, given by `--config job.yaml` or `SEGWORKER_CONFIG=job.yaml` |

Flags win over the environment, the environment over the job file, the job file over the defaults. Lists and mappings
are replaced as a whole, never merged. A name that does not exist is refused, and the nearest one that does is named.
`none` or `auto` takes a value back to its default where that depends on the model or the machine.

`--print-config` writes the whole tree as a job file that gives the same run again, and `--dry-run` plans it. These two
and `--config` are flags only.
"""


def page() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION]
    for name, section in sections().items():
        parts.append(
            f"\n## {name}\n\n{section.__doc__}\n\n| key | flag | environment | default | |\n|---|---|---|---|---|\n"
        )
        for key, field in section.model_fields.items():
            cells = [
                f"`{key}`",
                f"`{flag(key)}`",
                f"`{variable(name, key)}`",
                default_text(key),
                str(field.description),
            ]
            parts.append("| " + " | ".join(cells) + " |\n")
    return "".join(parts)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), "utf-8")
    elif page() != PAGE.read_text("utf-8"):
        sys.exit(f"{PAGE} is older than segworker/config.py; run `make docs`")
