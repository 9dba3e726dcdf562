"""The operations that a graph may consist of: what shape each gives, and its numbers where these are sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.models.graph_file import MAX_VALUES, Constant, Node

Shape: TypeAlias = tuple[int, ...]

_EXACT = 2**31  # whole numbers beyond are not computed with


@dataclass(frozen=True)
class Value:
    """A tensor: its shape, and its numbers if they are few and do not depend on the image."""

    shape: Shape
    known: NDArray[Any] | None = None


def given(inputs: Sequence[Value | None], place: int) -> Value:
    """An input that an operation needs.

    Raises:
        ValueError: it is left out.
    """
    value = inputs[place]
    if value is None:
        raise ValueError(f"its input {place} is missing")
    return value


def _numbers(inputs: list[Value | None], place: int) -> list[int]:
    """Whole numbers that are the size, place or order of something."""
    known = given(inputs, place).known
    if known is None or known.dtype.kind not in "iu":
        raise ValueError("a size depends on the image")
    return [int(each) for each in known.ravel()]


def _axes(node: Node, inputs: list[Value | None], place: int) -> list[int] | None:
    """Axes from an input, as in newer graphs, or from an attribute."""
    if len(inputs) > place and inputs[place] is not None:
        return _numbers(inputs, place)
    axes: list[int] | None = node.attributes.get("axes")
    return axes


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis}")
    return axis % rank


def _same(node: Node, inputs: list[Value | None]) -> list[Value]:
    _only_one(node)
    return [Value(given(inputs, 0).shape)]


def _normalise(node: Node, inputs: list[Value | None]) -> list[Value]:
    """A batch norm, perhaps of the weights themselves, which also gives their mean and variance."""
    data = given(inputs, 0)
    return [Value(data.shape) if each == 0 else Value((data.shape[1],)) for each in range(min(3, len(node.outputs)))]


def _identity(node: Node, inputs: list[Value | None]) -> list[Value]:
    _only_one(node)
    return [given(inputs, 0)]


def _only_one(node: Node) -> None:
    if len([name for name in node.outputs if name]) != 1:
        raise ValueError("it has several outputs")


def _constant(node: Node, _: list[Value | None]) -> list[Value]:
    (name,) = node.attributes
    value = node.attributes[name]
    if isinstance(value, Constant):
        if value.external is not None:
            raise ValueError("a constant in another file")
        return [Value(value.shape, value.values)]
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    array = np.asarray(value, kinds[name])
    return [Value(array.shape, array if array.size <= MAX_VALUES else None)]


def _elementwise(compute: Callable[..., Any] | None = None) -> Callable[[Node, list[Value | None]], list[Value]]:
    """An operation number by number, with shapes broadcast."""

    def run(node: Node, inputs: list[Value | None]) -> list[Value]:
        _only_one(node)
        present = [each for each in inputs if each is not None]
        shape = np.broadcast_shapes(*(each.shape for each in present))
        known = [each.known for each in present if each.known is not None]
        if compute is None or len(known) < len(present) or math.prod(shape) > MAX_VALUES:
            return [Value(shape)]
        if any(_is_inexact(each) for each in known):
            return [Value(shape)]
        with np.errstate(all="ignore"):
            result = np.asarray(compute(node, *known))
        return [Value(shape, None if _is_inexact(result) else result)]

    return run


def _is_inexact(array: NDArray[Any]) -> bool:
    return not bool(np.all(np.abs(array.astype(np.float64)) < _EXACT))  # NaN, too


def _divide(_: Node, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not b.all():
        raise ValueError("a division by 0")
    return np.asarray(np.trunc(a.astype(np.float64) / b).astype(a.dtype))  # towards 0; exact for such small numbers


def _modulo(node: Node, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    if not b.all():
        raise ValueError("a division by 0")
    return np.asarray(np.fmod(a, b) if node.attributes.get("fmod") else np.mod(a, b))


def _cast(node: Node, array: NDArray[Any]) -> NDArray[Any]:
    kind = {1: "f4", 6: "i4", 7: "i8", 9: "?", 10: "f2", 11: "f8"}[node.attributes["to"]]
    return array.astype(kind)


def _clip(node: Node, array: NDArray[Any], *limits: NDArray[Any]) -> NDArray[Any]:
    left = iter(limits)  # either limit can be left out
    for name, compare in zip(node.inputs[1:], (np.maximum, np.minimum), strict=False):
        array = compare(array, next(left)) if name else array
    return array


def _shape(node: Node, inputs: list[Value | None]) -> list[Value]:
    sides = given(inputs, 0).shape[node.attributes.get("start", 0) : node.attributes.get("end")]
    return [Value((len(sides),), np.array(sides, np.int64))]


def _gather(node: Node, inputs: list[Value | None]) -> list[Value]:
    data, places = given(inputs, 0), given(inputs, 1)
    axis = _axis(node.attributes.get("axis", 0), len(data.shape))
    shape = (*data.shape[:axis], *places.shape, *data.shape[axis + 1 :])
    known = None
    if data.known is not None and places.known is not None and math.prod(shape) <= MAX_VALUES:
        known = np.take(data.known, places.known, axis)
    return [Value(shape, known)]


def _slice(node: Node, inputs: list[Value | None]) -> list[Value]:
    data, starts, ends = given(inputs, 0), _numbers(inputs, 1), _numbers(inputs, 2)
    axes = _axes(node, inputs, 3) or list(range(len(starts)))
    steps = _numbers(inputs, 4) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    parts = [slice(None)] * len(data.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # Below the first, going backwards: Python takes -1 for the last.
        stop = None if step < 0 and end < -data.shape[axis] else end
        parts[_axis(axis, len(data.shape))] = slice(start, stop, step)
    shape = tuple(len(range(*part.indices(side))) for part, side in zip(parts, data.shape, strict=True))
    return [Value(shape, None if data.known is None else data.known[tuple(parts)])]


def _reshape(node: Node, inputs: list[Value | None]) -> list[Value]:
    data, wanted = given(inputs, 0), _numbers(inputs, 1)
    if not node.attributes.get("allowzero"):
        wanted = [data.shape[i] if side == 0 else side for i, side in enumerate(wanted)]
    size = math.prod(data.shape)
    if wanted.count(-1) == 1:
        wanted[wanted.index(-1)] = size // -math.prod(wanted)
    if any(side < 0 for side in wanted) or math.prod(wanted) != size:
        raise ValueError(f"{data.shape} does not fit {wanted}")
    return [Value(tuple(wanted), None if data.known is None else data.known.reshape(wanted))]


def _squeeze(node: Node, inputs: list[Value | None]) -> list[Value]:
    data, axes = given(inputs, 0), _axes(node, inputs, 1)
    out = [i for i, side in enumerate(data.shape) if side == 1] if axes is None else axes
    places = {_axis(axis, len(data.shape)) for axis in out}
    if any(data.shape[axis] != 1 for axis in places):
        raise ValueError("a side that is not 1")
    shape = tuple(side for i, side in enumerate(data.shape) if i not in places)
    return [Value(shape, None if data.known is None else data.known.reshape(shape))]


def _unsqueeze(node: Node, inputs: list[Value | None]) -> list[Value]:
    data, axes = given(inputs, 0), _axes(node, inputs, 1) or []
    rank = len(data.shape) + len(axes)
    shape = list(data.shape)
    for axis in sorted(_axis(axis, rank) for axis in axes):
        shape.insert(axis, 1)
    return [Value(tuple(shape), None if data.known is None else data.known.reshape(shape))]


def _transpose(node: Node, inputs: list[Value | None]) -> list[Value]:
    data = given(inputs, 0)
    order = node.attributes.get("perm", list(range(len(data.shape)))[::-1])
    if sorted(order) != list(range(len(data.shape))):
        raise ValueError(f"the order {order}")
    return [Value(tuple(data.shape[i] for i in order), None if data.known is None else data.known.transpose(order))]


def _concat(node: Node, inputs: list[Value | None]) -> list[Value]:
    parts = [given(inputs, i) for i in range(len(inputs))]
    shape = list(parts[0].shape)
    axis = _axis(node.attributes["axis"], len(shape))
    for each in parts[1:]:
        if len(each.shape) != len(shape) or any(each.shape[i] != shape[i] for i in range(len(shape)) if i != axis):
            raise ValueError("shapes that do not fit")
    shape[axis] = sum(each.shape[axis] for each in parts)
    known = [each.known for each in parts if each.known is not None]
    few = len(known) == len(parts) and math.prod(shape) <= MAX_VALUES
    return [Value(tuple(shape), np.concatenate(known, axis) if few else None)]


def _split(node: Node, inputs: list[Value | None]) -> list[Value]:
    data, count = given(inputs, 0), len(node.outputs)
    axis = _axis(node.attributes.get("axis", 0), len(data.shape))
    side = data.shape[axis]
    each = -(-side // count)
    equal = [each] * (count - 1) + [side - each * (count - 1)]
    parts = _numbers(inputs, 1) if len(inputs) > 1 and inputs[1] is not None else equal
    if len(parts) != count or sum(parts) != side or min(parts) < 0:
        raise ValueError(f"{side} in parts of {parts}")
    ends = np.cumsum(parts)[:-1]
    known = [None] * count if data.known is None else np.split(data.known, ends, axis)
    shapes = [(*data.shape[:axis], part, *data.shape[axis + 1 :]) for part in parts]
    return [Value(shape, values) for shape, values in zip(shapes, known, strict=True)]


def _fill(node: Node, inputs: list[Value | None]) -> list[Value]:
    shape, value = tuple(_numbers(inputs, 0)), node.attributes.get("value")
    if any(side < 0 for side in shape):
        raise ValueError(f"the shape {shape}")
    known = np.zeros(1, np.float32) if value is None else value.values
    return [Value(shape, None if math.prod(shape) > MAX_VALUES else np.full(shape, known.item(), known.dtype))]


def _expand(_: Node, inputs: list[Value | None]) -> list[Value]:
    data, wanted = given(inputs, 0), tuple(_numbers(inputs, 1))
    shape = np.broadcast_shapes(data.shape, wanted)
    few = data.known is not None and math.prod(shape) <= MAX_VALUES
    return [Value(shape, np.broadcast_to(data.known, shape) if few and data.known is not None else None)]


def _tile(_: Node, inputs: list[Value | None]) -> list[Value]:
    data, times = given(inputs, 0), _numbers(inputs, 1)
    if any(each < 0 for each in times):
        raise ValueError(f"{times} times")
    return [Value(tuple(side * each for side, each in zip(data.shape, times, strict=True)))]


def _range(_: Node, inputs: list[Value | None]) -> list[Value]:
    start, limit, step = (_numbers(inputs, i)[0] for i in range(3))
    size = max(0, -(-(limit - start) // step))
    return [Value((size,), np.arange(start, limit, step) if size <= MAX_VALUES else None)]


def _pad(_: Node, inputs: list[Value | None]) -> list[Value]:
    data, pads = given(inputs, 0), _numbers(inputs, 1)
    if len(pads) != 2 * len(data.shape) or (len(inputs) > 3 and inputs[3] is not None):
        raise ValueError(f"{pads} for {data.shape}")
    before, after = pads[: len(data.shape)], pads[len(data.shape) :]
    shape = tuple(a + side + b for a, side, b in zip(before, data.shape, after, strict=True))
    if any(side < 0 for side in shape):
        raise ValueError(f"the shape {shape}")
    return [Value(shape)]


def _window(node: Node, inputs: list[Value | None]) -> list[Value]:
    """A convolution or a pooling."""
    _only_one(node)
    image = given(inputs, 0).shape
    sides, channels = image[2:], image[1]
    kernel = node.attributes.get("kernel_shape")
    if node.kind == "Conv":
        weight = given(inputs, 1).shape
        if weight[1] * node.attributes.get("group", 1) != channels or kernel not in (None, list(weight[2:])):
            raise ValueError(f"the weights {weight} for {image}")
        kernel, channels = list(weight[2:]), weight[0]
    if node.attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or kernel is None or len(kernel) != len(sides):
        raise ValueError("a window of unknown size")
    strides, dilations = (node.attributes.get(name, [1] * len(sides)) for name in ("strides", "dilations"))
    pads = node.attributes.get("pads", [0] * 2 * len(sides))
    if min(*strides, *dilations, *kernel) < 1 or min(pads) < 0 or len(pads) != 2 * len(sides):
        raise ValueError("a window of invalid size")
    shape = []
    for i, (side, width) in enumerate(zip(sides, kernel, strict=True)):
        span = side + pads[i] + pads[i + len(sides)] - dilations[i] * (width - 1) - 1
        steps = -(-span // strides[i]) if node.attributes.get("ceil_mode") else span // strides[i]
        shape.append(max(0, steps + 1))
    return [Value((image[0], channels, *shape))]


def _average(_: Node, inputs: list[Value | None]) -> list[Value]:
    batch, channels, *sides = given(inputs, 0).shape
    return [Value((batch, channels, *[1] * len(sides)))]


def _gemm(node: Node, inputs: list[Value | None]) -> list[Value]:
    a, b = given(inputs, 0).shape, given(inputs, 1).shape
    (rows, inner), (outer, columns) = (
        each[::-1] if node.attributes.get(name) else each for name, each in (("transA", a), ("transB", b))
    )
    if inner != outer:
        raise ValueError(f"{a} times {b}")
    return [Value((rows, columns))]


def _matmul(_: Node, inputs: list[Value | None]) -> list[Value]:
    a, b = given(inputs, 0).shape, given(inputs, 1).shape
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise ValueError(f"{a} times {b}")
    return [Value((*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1]))]


def _reduce(node: Node, inputs: list[Value | None]) -> list[Value]:
    shape, axes = given(inputs, 0).shape, _axes(node, inputs, 1)
    if not axes and node.attributes.get("noop_with_empty_axes"):
        return [Value(shape)]
    places = {_axis(axis, len(shape)) for axis in axes or range(len(shape))}
    keep = node.attributes.get("keepdims", 1)
    return [Value(tuple(1 if i in places else side for i, side in enumerate(shape) if keep or i not in places))]


def _resize(node: Node, inputs: list[Value | None]) -> list[Value]:
    shape = given(inputs, 0).shape
    if node.attributes.keys() & {"axes", "keep_aspect_ratio_policy", "antialias"}:
        raise ValueError("a way to resize that is not known here")
    if len(inputs) > 3 and inputs[3] is not None:
        wanted = tuple(_numbers(inputs, 3))
    else:
        scales = given(inputs, 2).known
        if scales is None:
            raise ValueError("a size depends on the image")
        wanted = tuple(int(np.float32(side) * np.float32(s)) for side, s in zip(shape, scales.ravel(), strict=True))
    if len(wanted) != len(shape) or min(wanted) < 0:
        raise ValueError(f"the shape {wanted}")
    return [Value(wanted)]


_COMPUTED: Mapping[str, Callable[..., Any]] = {
    "Add": lambda _, a, b: a + b, "Sub": lambda _, a, b: a - b, "Mul": lambda _, a, b: a * b, "Div": _divide,
    "Mod": _modulo, "Ceil": lambda _, a: np.ceil(a), "Floor": lambda _, a: np.floor(a), "Cast": _cast,
    "Sqrt": lambda _, a: np.sqrt(a), "Equal": lambda _, a, b: a == b, "Where": lambda _, c, a, b: np.where(c, a, b),
    "Clip": _clip, "Neg": lambda _, a: -a, "Max": lambda _, *a: np.maximum.reduce(a),
    "Min": lambda _, *a: np.minimum.reduce(a),
}  # fmt: skip
_SAME_SHAPE = (
    "Abs", "Cos", "DequantizeLinear", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Mish", "Not", "QuantizeLinear",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softmax", "Softplus", "Softsign", "Tanh",
)  # fmt: skip
# An operation takes a node and its inputs (None is left out), and gives its outputs.
OPERATIONS: Mapping[str, Callable[[Node, list[Value | None]], list[Value]]] = {
    **dict.fromkeys(_SAME_SHAPE, _same),
    **dict.fromkeys(("Pow", "PRelu", "Greater", "Less", "And", "Or"), _elementwise()),
    **{kind: _elementwise(compute) for kind, compute in _COMPUTED.items()},
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), _reduce),
    **dict.fromkeys(("Conv", "MaxPool", "AveragePool"), _window),
    "BatchNormalization": _normalise,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _fill,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _average,
    "Identity": _identity,
    "MatMul": _matmul,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
