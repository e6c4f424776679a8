"""The one place that chooses how kernels are compiled.

Kernels are cached on disk beside the module (or in the user's cache folder where that is read-only), so that the second
process of a machine starts at once. They never use the GIL and never `fastmath`: results are the same everywhere.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
T = TypeVar("T")


def kernel(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a function of arrays and scalars on its first call; `kernel.py_func` keeps the Python one."""
    return cast("Callable[P, T]", numba.njit(cache=True, nogil=True, error_model="numpy")(function))
