"""The one place that chooses how kernels are compiled.

Kernels are cached on disk beside the module (or in the user's cache folder where that is read-only), so that the second
process of a machine starts at once. They never use the GIL and never `fastmath`: results are the same everywhere.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
T = TypeVar("T")


def kernel(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a function of arrays and scalars on its first call; `kernel.py_func` keeps the Python one.

    Nothing calls kernels from C, so they have no wrapper for it: a tenth of the time to compile.
    """
    options: dict[str, Any] = {"no_cfunc_wrapper": True}  # numba's types leave it out
    compiled = numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
    return cast("Callable[P, T]", compiled)
