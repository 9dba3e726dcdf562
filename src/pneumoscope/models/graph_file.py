"""Reads an ONNX file without the `onnx` package: only what decides how much work its graph is.

What protobuf or ONNX allow but `models.onnx_graphs` never writes is refused: graphs inside nodes, functions, sparse
tensors, a field that occurs twice (which protobuf would merge).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Fields: TypeAlias = dict[int, list[Any]]

MAX_VALUES = 4096  # numbers of a constant that are read; a larger one is not the size of anything
_KINDS: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"), 2: np.dtype("u1"), 3: np.dtype("i1"), 4: np.dtype("<u2"), 5: np.dtype("<i2"),
    6: np.dtype("<i4"), 7: np.dtype("<i8"), 9: np.dtype("?"), 10: np.dtype("<f2"), 11: np.dtype("<f8"),
    12: np.dtype("<u4"), 13: np.dtype("<u8"), 16: np.dtype("<u2"),
}  # fmt: skip
_CONTENTS = {1: 2, 2: 3, 3: 4, 4: 5, 6: 7, 7: 8}  # the field of an attribute, by what its kind says
_LISTS = {4: "<f4", 5: "varint", 7: "varint", 10: "<f8", 11: "varint"}  # fields of a tensor that hold its numbers


@dataclass(frozen=True)
class Constant:
    """A tensor in the file, or the place of one in a file beside it."""

    shape: tuple[int, ...]
    values: NDArray[Any] | None  # None if there are more than `MAX_VALUES`, or in another file
    external: Mapping[str, str] | None = None  # location, offset, length
    itemsize: int = 4

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Node:
    """One operation."""

    kind: str
    inputs: tuple[str, ...]  # an empty name is an input that is left out
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]  # int, float, bytes, `Constant`, or a list of int or of float


@dataclass(frozen=True)
class Graph:
    """A graph: its operations in order."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant]
    inputs: Mapping[str, tuple[int | None, ...]]  # sides; None is any
    outputs: tuple[str, ...]


def read_graph(content: bytes) -> Graph:
    """Read an ONNX file.

    Raises:
        ValueError: damaged, or nothing that pneumoscope writes; the message says why.
    """
    try:
        model = _split(memoryview(content))
        _refuse(model, {20: "training", 25: "functions"})
        graph = _split(_one(model, 7, b""))
        _refuse(graph, {15: "sparse tensors"})
        constants: dict[str, Constant] = {}
        for part in graph.get(5, ()):
            name, constant = _read_tensor(part)
            if name in constants:
                raise ValueError(f"two constants are named {name}")
            constants[name] = constant
        return Graph(
            tuple(_read_node(part) for part in graph.get(1, ())),
            constants,
            dict(_read_side(part) for part in graph.get(11, ())),
            tuple(_read_side(part)[0] for part in graph.get(12, ())),
        )
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, AttributeError) as problem:
        raise ValueError(f"not an ONNX file ({problem})") from None


def _split(data: memoryview) -> Fields:
    """The fields of a protobuf message by number: integers, or views of bytes."""
    fields: Fields = {}
    place, end = 0, len(data)
    while place < end:
        key, place = _read_varint(data, place)
        wire = key & 7
        value: Any
        if wire == 0:
            value, place = _read_varint(data, place)
        elif wire in (1, 2, 5):
            length, place = _read_varint(data, place) if wire == 2 else (8 if wire == 1 else 4, place)
            if length > end - place:
                raise ValueError("it ends too early")
            value, place = data[place : place + length], place + length
        else:
            raise ValueError("it is not an ONNX file")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _read_varint(data: memoryview, place: int) -> tuple[int, int]:
    value = data[place]
    if value < 128:
        return value, place + 1
    value, shift = value & 127, 7
    while True:
        place += 1
        byte = data[place]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place + 1
        shift += 7
        if shift > 63:
            raise ValueError("it is not an ONNX file")


def _one(fields: Fields, number: int, default: Any) -> Any:
    found = fields.get(number)
    if found is None:
        return memoryview(default) if isinstance(default, bytes) else default
    if len(found) > 1 or isinstance(found[0], int) != isinstance(default, int):
        raise ValueError("a field occurs twice, or has another type")
    return found[0]


def _refuse(fields: Fields, what: Mapping[int, str]) -> None:
    for number, name in what.items():
        if number in fields:
            raise ValueError(f"{name} are not run")


def _text(view: Any) -> str:
    return bytes(view).decode()


def _integers(fields: Fields, number: int) -> list[int]:
    """A repeated integer, packed or not; 64 bits with a sign."""
    found: list[int] = []
    for each in fields.get(number, ()):
        place = 0
        while not isinstance(each, int) and place < len(each):
            value, place = _read_varint(each, place)
            found.append(value)
        if isinstance(each, int):
            found.append(each)
    return [value - 2**64 if value >= 2**63 else value for value in found]


def _read_node(part: memoryview) -> Node:
    fields = _split(part)
    kind, domain = _text(_one(fields, 4, b"")), _text(_one(fields, 7, b""))
    if domain not in ("", "ai.onnx"):
        raise ValueError(f"operations of {domain} are not run")
    attributes = dict(_read_attribute(each) for each in fields.get(5, ()))
    if len(attributes) < len(fields.get(5, ())):
        raise ValueError("an attribute occurs twice")
    inputs, outputs = (tuple(_text(each) for each in fields.get(number, ())) for number in (1, 2))
    return Node(kind, inputs, outputs, attributes)


def _read_attribute(part: memoryview) -> tuple[str, Any]:
    fields = _split(part)
    kind = _one(fields, 20, 0)
    if kind not in _CONTENTS or not {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 21, 22, 23} & fields.keys() <= {_CONTENTS[kind]}:
        raise ValueError("an attribute is a graph or a function, has another type, or occurs twice")
    name = _text(_one(fields, 1, b""))
    if kind == 1:
        return name, struct.unpack("<f", _one(fields, 2, b"\0" * 4))[0]
    if kind == 3:
        return name, bytes(_one(fields, 4, b""))
    if kind == 4:
        return name, _read_tensor(_one(fields, 5, b""))[1]
    if kind == 6:
        return name, list(_floats(fields.get(7, []), "<f4"))
    values = _integers(fields, _CONTENTS[kind])
    return name, values if kind == 7 else sum(values)  # one, or none for 0


def _read_tensor(part: memoryview) -> tuple[str, Constant]:
    fields = _split(part)
    _refuse(fields, {3: "tensors in segments", 6: "tensors of text"})
    name, shape = _text(_one(fields, 8, b"")), tuple(_integers(fields, 1))
    kind = _KINDS.get(_one(fields, 2, 0))
    if kind is None or any(side < 0 for side in shape):
        raise ValueError(f"{name}: a tensor of an unknown kind or shape")
    count = math.prod(shape)
    if _one(fields, 14, 0) == 1:
        entries = [_split(each) for each in fields.get(13, ())]
        external = {_text(_one(each, 1, b"")): _text(_one(each, 2, b"")) for each in entries}
        return name, Constant(shape, None, external, kind.itemsize)
    if 13 in fields:
        raise ValueError(f"{name}: a tensor that is in two places")
    raw = _one(fields, 9, b"")
    lists = [number for number in _LISTS if number in fields]
    if lists and (len(raw) or len(lists) > 1):
        raise ValueError(f"{name}: a tensor that occurs twice")
    values: Any = None
    if lists:
        code = _LISTS[lists[0]]
        values = _integers(fields, lists[0]) if code == "varint" else list(_floats(fields[lists[0]], code))
    elif len(raw) == count * kind.itemsize:
        values = np.frombuffer(raw, kind) if count <= MAX_VALUES else None
    elif count or len(raw):
        raise ValueError(f"{name}: {len(raw):,} bytes for the shape {shape}")
    if values is not None and len(values) != count:
        raise ValueError(f"{name}: {len(values):,} numbers for the shape {shape}")
    if values is None or count > MAX_VALUES or kind.kind not in "ifb" or kind.itemsize == 2:
        return name, Constant(shape, None, None, kind.itemsize)
    return name, Constant(shape, np.asarray(values).astype(kind).reshape(shape), None, kind.itemsize)


def _floats(parts: list[Any], code: str) -> Iterator[float]:
    for each in parts:
        yield from np.frombuffer(each, code).tolist()


def _read_side(part: memoryview) -> tuple[str, tuple[int | None, ...]]:
    """The name of a graph's input or output, and its shape."""
    fields = _split(part)
    tensor = _split(_one(_split(_one(fields, 2, b"")), 1, b""))
    sides = [_split(each) for each in _split(_one(tensor, 2, b"")).get(1, ())]
    return _text(_one(fields, 1, b"")), tuple(_one(side, 1, 0) or None for side in sides)
