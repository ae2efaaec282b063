"""An infer request and its answer as gRPC messages: raw contents and typed contents in, the same form out.

Reads untrusted input: `parse_infer` raises RequestInvalid that names the field, never anything else. What it gives is the
`InferRequest` that HTTP gives too; from there on the two are one path.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from model_formats.core.runtime import Array
from spoke_agent.server.grpc.message_cache import SplitMessage, field, split_message
from spoke_agent.server.grpc.messages import MESSAGES
from spoke_agent.server.protocol.bounded_cache import BoundedCache
from spoke_agent.server.protocol.json_codec import LONGEST_ID, MOST_TENSORS, InferRequest
from spoke_agent.server.protocol.tensors import DTYPES, count_of, datatype_of, from_binary, to_binary
from spoke_agent.server_api.errors import RequestInvalid, Unsupported

__all__ = ["ParsedRequest", "decode", "parse_infer", "render_infer"]

_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_Infer: Final = MESSAGES["ModelInferRequest"]
_Answer: Final = MESSAGES["ModelInferResponse"]


@dataclass(slots=True)
class ParsedRequest:
    """One infer request: whom, what, and whether the answer's tensors are typed too, as the inputs were."""

    model: str
    version: str | None
    request: InferRequest
    typed: bool


def decode(message: Any, data: bytes) -> Any:
    """The message of a class from its bytes. Raises RequestInvalid."""
    try:
        return message.FromString(data)
    except (DecodeError, ValueError) as e:
        raise RequestInvalid(f"the request is not a {message.DESCRIPTOR.full_name}") from e


@dataclass(frozen=True, slots=True)
class _Head:
    """What a request's head says, checked: everything but its id and the values of its tensors."""

    model: str
    version: str | None
    tensors: tuple[tuple[str, str, tuple[int, ...], int], ...]
    """Name, datatype, shape, number of elements."""
    datatypes: dict[str, str]
    outputs: list[tuple[str, bool]] | None
    parameters: dict[str, Any]


_ENTRIES: Final = 256
_heads: Final[BoundedCache[bytes, _Head]] = BoundedCache(_ENTRIES)
_answers: Final[BoundedCache[tuple[Any, ...], tuple[bytes, bytes]]] = BoundedCache(_ENTRIES)


def parse_infer(data: bytes) -> ParsedRequest:
    """Read a ModelInferRequest."""
    parts = split_message(data)
    return _whole(data) if parts is None else _from_parts(parts)


def _from_parts(parts: SplitMessage) -> ParsedRequest:
    """A request in the usual form: its head is most likely known."""
    raws = parts.raws
    head = _heads.recall(parts.head, lambda: _head(parts.head, len(raws)))
    tensors = head.tensors
    _paired(len(raws), len(tensors))
    inputs = {n: from_binary(n, d, s, c, memoryview(raw)) for (n, d, s, c), raw in zip(tensors, raws, strict=True)}
    request = InferRequest(
        id=_id(parts.id),
        inputs=inputs,
        datatypes=head.datatypes,
        outputs=head.outputs,
        binary_default=True,
        parameters=head.parameters,
    )
    return ParsedRequest(head.model, head.version, request, typed=False)


def _head(data: bytes, raws: int) -> _Head:
    message = decode(_Infer, data)
    tensors = []
    _paired(raws, _counted(message.inputs))
    for place, tensor in enumerate(message.inputs):
        name, datatype, shape, count = _described(tensor, place)
        if tensor.HasField("contents"):
            raise RequestInvalid(f"input {name!r}: has contents beside raw_input_contents")
        tensors.append((name, datatype, shape, count))
    datatypes = {name: datatype for name, datatype, _, _ in tensors}
    if len(datatypes) != len(tensors):
        raise RequestInvalid("inputs: a name occurs twice")
    outputs, parameters = _outputs(message.outputs), _parameters(message.parameters)
    return _Head(message.model_name, message.model_version or None, tuple(tensors), datatypes, outputs, parameters)


def _id(given: bytes) -> str | None:
    try:
        found = given.decode()
    except UnicodeDecodeError as e:
        raise RequestInvalid(f"the request is not a {_Infer.DESCRIPTOR.full_name}") from e
    if len(found) > LONGEST_ID:
        raise RequestInvalid(f"id: must be text of at most {LONGEST_ID} characters")
    return found or None


def _whole(data: bytes) -> ParsedRequest:
    """Any request."""
    message = decode(_Infer, data)
    if len(message.id) > LONGEST_ID:
        raise RequestInvalid(f"id: must be text of at most {LONGEST_ID} characters")
    raws = message.raw_input_contents
    inputs, datatypes = _inputs(message.inputs, raws)
    request = InferRequest(
        id=message.id or None,
        inputs=inputs,
        datatypes=datatypes,
        outputs=_outputs(message.outputs),
        binary_default=True,
        parameters=_parameters(message.parameters) if message.parameters else {},
    )
    return ParsedRequest(message.model_name, message.model_version or None, request, not raws)


def render_infer(asked: ParsedRequest, model: str, version: str, names: Sequence[str], arrays: Sequence[Array]) -> bytes:
    """A ModelInferResponse: typed where the request was and every tensor has a typed form, else raw. `names` and `arrays` are
    all visible outputs.
    """
    wanted = asked.request.outputs
    if wanted is not None:
        arrays = [arrays[names.index(name)] for name, _ in wanted]
        names = [name for name, _ in wanted]
    if asked.typed and all(datatype_of(array) in _CONTENTS for array in arrays):
        answer = _described_answer(model, version, asked.request.id or "", names, arrays)
        for tensor, array in zip(answer.outputs, arrays, strict=True):
            _put(tensor, tensor.datatype, array)
        done: bytes = answer.SerializeToString()
        return done
    key = (model, version, *names, *[(array.shape, array.dtype) for array in arrays])
    start, outputs = _answers.recall(key, lambda: _ends(model, version, names, arrays))
    given = asked.request.id
    raws = field(6, [to_binary(array) for array in arrays])
    return b"".join((start, field(3, [given.encode()]) if given else b"", outputs, raws))


def _ends(model: str, version: str, names: Sequence[str], arrays: Sequence[Array]) -> tuple[bytes, bytes]:
    """Of a raw answer the bytes before its id, and those between its id and its tensors."""
    start: bytes = _Answer(model_name=model, model_version=version).SerializeToString()
    whole: bytes = _described_answer(model, version, "", names, arrays).SerializeToString()
    return start, whole.removeprefix(start)


def _described_answer(model: str, version: str, given: str, names: Sequence[str], arrays: Sequence[Array]) -> Any:
    answer = _Answer(model_name=model, model_version=version, id=given)
    for name, array in zip(names, arrays, strict=True):
        answer.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
    return answer


def _inputs(tensors: Any, raws: Any) -> tuple[dict[str, Array], dict[str, str]]:
    _paired(len(raws), _counted(tensors))
    arrays: dict[str, Array] = {}
    datatypes: dict[str, str] = {}
    for place, tensor in enumerate(tensors):
        name, datatype, shape, count = _described(tensor, place)
        if name in arrays:
            raise RequestInvalid(f"inputs[{place}].name: {name!r} occurs twice")
        if not raws:
            arrays[name] = _typed(name, datatype, shape, count, tensor.contents)
        elif tensor.HasField("contents"):
            raise RequestInvalid(f"input {name!r}: has contents beside raw_input_contents")
        else:
            arrays[name] = from_binary(name, datatype, shape, count, memoryview(raws[place]))
        datatypes[name] = datatype
    return arrays, datatypes


def _counted(tensors: Any) -> int:
    if not 0 < len(tensors) <= MOST_TENSORS:
        raise RequestInvalid(f"inputs: must be 1 to {MOST_TENSORS} tensors, not {len(tensors)}")
    return len(tensors)


def _paired(raws: int, tensors: int) -> None:
    if raws and raws != tensors:
        raise RequestInvalid(f"raw_input_contents: {raws} buffers for {tensors} inputs")


def _described(tensor: Any, place: int) -> tuple[str, str, tuple[int, ...], int]:
    """Name, datatype, shape and number of elements of an input."""
    name, datatype = tensor.name, tensor.datatype
    if not name:
        raise RequestInvalid(f"inputs[{place}].name: is missing")
    if datatype not in DTYPES:
        raise RequestInvalid(f"input {name!r}: datatype must be one of {', '.join(DTYPES)}")
    shape, count = count_of(name, list(tensor.shape))
    if tensor.parameters and "shared_memory_region" in tensor.parameters:
        raise Unsupported(f"input {name!r}: shared memory is not served; send the tensor itself")
    return name, datatype, shape, count


def _typed(name: str, datatype: str, shape: tuple[int, ...], count: int, contents: Any) -> Array:
    field = _CONTENTS.get(datatype)
    if field is None:
        raise RequestInvalid(f"input {name!r}: {datatype} has no typed contents; send it as raw_input_contents")
    odd = next((f.name for f, _ in contents.ListFields() if f.name != field), None)
    if odd is not None:
        raise RequestInvalid(f"input {name!r}: {odd} is filled, but {datatype} goes into {field}")
    values = getattr(contents, field)
    if len(values) != count:
        raise RequestInvalid(f"input {name!r}: {len(values)} values, but shape {list(shape)} has {count}")
    if datatype == "BYTES":
        return _texts(name, values).reshape(shape)
    wide: Array = np.array(values, _wire_dtype(field))
    dtype = DTYPES[datatype]
    if dtype.itemsize < 4 and dtype.kind in "iu" and count:
        bounds = np.iinfo(dtype)
        if wide.min() < bounds.min or wide.max() > bounds.max:
            raise RequestInvalid(f"input {name!r}: a value is outside {datatype} ({bounds.min}..{bounds.max})")
    return wide.astype(dtype, copy=False).reshape(shape)


def _wire_dtype(field: str) -> np.dtype[Any]:
    kinds = {
        "bool": "BOOL",
        "int": "INT32",
        "int64": "INT64",
        "uint": "UINT32",
        "uint64": "UINT64",
        "fp32": "FP32",
        "fp64": "FP64",
    }
    return DTYPES[kinds[field.removesuffix("_contents")]]


def _texts(name: str, values: Sequence[bytes]) -> Array:
    found = np.empty(len(values), np.object_)
    try:
        found[:] = [value.decode() for value in values]
    except UnicodeDecodeError as e:
        raise RequestInvalid(f"input {name!r}: BYTES elements must be UTF-8 text: {e.reason} at byte {e.start}") from e
    return found


def _put(tensor: Any, datatype: str, array: Array) -> None:
    values = array.reshape(-1).tolist()
    if datatype == "BYTES":
        values = [value if isinstance(value, bytes) else str(value).encode() for value in values]
    getattr(tensor.contents, _CONTENTS[datatype]).extend(values)


def _outputs(given: Any) -> list[tuple[str, bool]] | None:
    if len(given) > MOST_TENSORS:
        raise RequestInvalid(f"outputs: must be at most {MOST_TENSORS} tensors")
    for output in given:
        for parameter in output.parameters:
            if parameter in ("classification", "shared_memory_region"):
                raise Unsupported(f"output {output.name!r}: {parameter} is not served; take the output itself")
    return [(output.name, True) for output in given] or None


def _parameters(given: Any) -> dict[str, Any]:
    found = {}
    for key, value in given.items():
        choice = value.WhichOneof("parameter_choice")
        found[key] = None if choice is None else getattr(value, choice)
    return found
