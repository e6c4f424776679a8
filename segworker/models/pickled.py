"""Pickles of numpy arrays, read without executing anything: detectron2's model zoo publishes such files (.pkl)."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LEGACY_TORCH = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"The number that files of torch.save began with before they were zip files."


def is_plain_pickle(content: bytes) -> bool:
    """Tell whether a file is a pickle that torch.save did not write."""
    return content[:1] == b"\x80" and _LEGACY_TORCH not in content[:32]


def read_arrays(content: bytes) -> object:
    """Return the nested dicts of a pickle, its numpy arrays as tensors; what is neither array nor dict stays as it is.

    Raises:
        pickle.UnpicklingError: the pickle names anything but numpy arrays; nothing of it has been executed.
    """
    return _as_tensors(_ArrayUnpickler(io.BytesIO(content), encoding="latin1").load())


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the few names by which numpy arrays are rebuilt, each bound to a function that can do nothing else."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  # the interface of pickle
        asked = (module.replace("numpy._core", "numpy.core"), name)
        if asked == ("numpy", "ndarray"):  # an argument of `_reconstruct`, never called
            return None
        if asked not in self._known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")
        return self._known[asked]

    @staticmethod
    def _array(kind: object, shape: tuple[int, ...], dtype: object) -> NDArray[Any]:  # noqa: ARG004  # numpy's
        """Return an empty array, which pickle fills; subclasses of arrays become plain ones."""
        return np.ndarray.__new__(np.ndarray, (0,), np.dtype("u1"))

    @staticmethod
    def _dtype(code: object, *flags: object) -> np.dtype[Any]:  # noqa: ARG004  # numpy's interface
        dtype = np.dtype(code, False, True) if isinstance(code, str) else None  # a copy: pickle sets its byte order
        if dtype is None or dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"it holds values of type {code!r}, and weights are numbers")
        return dtype

    @staticmethod
    def _scalar(dtype: np.dtype[Any], content: object = b"") -> object:
        raw = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(raw, bytes) or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError("it holds a number that is none")
        return np.frombuffer(raw, dtype)[0]

    @staticmethod
    def _encode(text: str, codec: str) -> bytes:
        if codec not in {"latin1", "latin-1"}:
            raise pickle.UnpicklingError(f"it wants to decode {codec!r}")
        return text.encode("latin1")

    @staticmethod
    def _no_bytes() -> bytes:
        """Return what old pickles call `bytes` for: the content of an empty array."""
        return b""

    _known: ClassVar[Mapping[tuple[str, str], Callable[..., object]]]


_ArrayUnpickler._known = {  # noqa: SLF001  # the class itself, which its own body cannot name
    ("numpy.core.multiarray", "_reconstruct"): _ArrayUnpickler._array,  # noqa: SLF001
    ("numpy.core.multiarray", "scalar"): _ArrayUnpickler._scalar,  # noqa: SLF001
    ("numpy", "dtype"): _ArrayUnpickler._dtype,  # noqa: SLF001
    ("_codecs", "encode"): _ArrayUnpickler._encode,  # noqa: SLF001
    ("__builtin__", "bytes"): _ArrayUnpickler._no_bytes,  # noqa: SLF001
    ("builtins", "bytes"): _ArrayUnpickler._no_bytes,  # noqa: SLF001
    ("collections", "OrderedDict"): OrderedDict,
}


def _as_tensors(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _as_tensors(inner) for key, inner in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _tensor(np.array(value))
    return value


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
