"""DLPack as a consumer: what an array's capsule says of its memory, and on which device it is.

Called by producers. The layout of the structures is that of DLPack 1.x and of the versions before it, which put no
flags in front (https://dmlc.github.io/dlpack/latest/c_api.html).
"""

import ctypes
from typing import Any

import numpy as np

from ..checks import BFLOAT16
from .arrays import Memory, contiguous

NEWEST = (1, 0)  # of the layout read here; producers that do not know the question are older
UNORDERED = -1  # as a stream: the producer need not order anything
LEGACY_STREAM = 1  # DLPack's number of the stream that CUDA calls 0
READ_ONLY = 1  # of the flags

KINDS = {0: "i", 1: "u", 2: "f", 5: "c"}  # by DLDataTypeCode
BFLOAT = 4


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements; none where contiguous
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_name_of = ctypes.pythonapi.PyCapsule_GetName
_name_of.restype, _name_of.argtypes = ctypes.c_char_p, (ctypes.py_object,)
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def device(value: Any) -> int:
    """The number of the GPU that a value is on."""
    return int(value.__dlpack_device__()[1])


def order(value: Any, stream: int) -> None:
    """Have the producer order its work on a value before what is queued on the stream from now on."""
    _export(value, stream or LEGACY_STREAM)


def memory_of(value: Any) -> Memory:
    """Where a value lies. Its capsule, which is left unconsumed, keeps the memory and frees it when it goes itself."""
    capsule = _export(value, UNORDERED)
    name = _name_of(capsule)
    pointer = _pointer_of(capsule, name)
    read_only = False
    if name == b"dltensor_versioned":
        versioned = _Versioned.from_address(pointer)
        tensor, read_only = versioned.tensor, bool(versioned.flags & READ_ONLY)
    else:
        tensor = _Tensor.from_address(pointer)
    dtype = _dtype(tensor.dtype)
    shape = tuple(tensor.shape[d] for d in range(tensor.dimensions))
    if tensor.strides:
        strides = tuple(tensor.strides[d] * dtype.itemsize for d in range(tensor.dimensions))
    else:
        strides = contiguous(shape, dtype.itemsize)
    address = (tensor.data or 0) + tensor.byte_offset
    return Memory(address, read_only, shape, strides, dtype, None, False, capsule)


def _export(value: Any, stream: int) -> Any:
    try:
        return value.__dlpack__(stream=stream, max_version=NEWEST)
    except TypeError:
        return value.__dlpack__(stream=stream)


def _dtype(kind: _DataType) -> Any:
    """NumPy's dtype; void, which nothing takes, for one that it does not have."""
    if kind.lanes == 1 and (kind.code, kind.bits) == (BFLOAT, 16):
        return BFLOAT16
    size = kind.bits // 8
    if kind.lanes == 1 and kind.code in KINDS and size in (1, 2, 4, 8, 16):
        return np.dtype(f"{KINDS[kind.code]}{size}")
    return np.dtype((np.void, max(size * kind.lanes, 1)))
