"""The Open Inference Protocol v2 in bytes: an infer request in, an infer response out, JSON and binary tensors both ways.

Reads untrusted input: `parse_request` raises RequestInvalid (or a kind of it) that names the field, never anything else. It knows
nothing of models; `models/contract_check.py` then checks the request against the model's contract.
Source: KServe Open Inference Protocol v2, REST, and Triton's binary tensor data extension.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any

import numpy as np
import orjson
from msgspec import Struct

from model_formats.core.runtime import Array
from spoke_agent.server.protocol.tensors import DTYPES, count_of, datatype_of, from_binary, from_json, to_binary, to_json
from spoke_agent.server_api.errors import RequestInvalid

__all__ = [
    "LONGEST_ID",
    "MOST_TENSORS",
    "InferRequest",
    "ResponseTemplate",
    "error_body",
    "parse_request",
    "read_id",
    "render_response",
]

_NOTHING = memoryview(b"")
LONGEST_ID = 200
"""Characters of a request's id."""
MOST_TENSORS = 256
"""Tensors of a request, in or out."""


class InferRequest(Struct):
    """One parsed request. `outputs` None means all; each output knows whether it goes back as raw bytes."""

    id: str | None
    inputs: Mapping[str, Array]
    datatypes: dict[str, str]
    outputs: list[tuple[str, bool]] | None
    binary_default: bool
    parameters: dict[str, Any]
    form: object = None
    """Equal for requests that say the same but for the id and the values, so that all else of them is judged once; None where
    that is not known.
    """

    def text(self, name: str) -> str | None:
        """A parameter that must be text; None when it is absent."""
        value = self.parameters.get(name)
        if value is not None and type(value) is not str:
            raise RequestInvalid(f"parameters.{name}: must be text")
        return value


def parse_request(body: bytes, json_length: int | None) -> InferRequest:
    """Read a request. `json_length` is the Inference-Header-Content-Length header, None when it was not sent."""
    head, tail = (body, _NOTHING) if json_length is None else _split(body, json_length)
    try:
        document = orjson.loads(head)
    except orjson.JSONDecodeError as e:
        raise RequestInvalid(_not_json(body, json_length, e)) from e
    if type(document) is not dict:
        raise RequestInvalid("the request must be a JSON object")
    parameters = _object(document, "parameters", "parameters")
    inputs, datatypes = _inputs(document.get("inputs"), tail)
    binary_default = bool(parameters) and _flag(parameters, "binary_data_output", "parameters")
    outputs = _outputs(document.get("outputs"), binary_default)
    return InferRequest(read_id(document.get("id")), inputs, datatypes, outputs, binary_default, parameters)


class ResponseTemplate:
    """What all responses of a version say, written once. `outputs` are all that callers may see: name and datatype, in order."""

    def __init__(self, model: str, version: str, outputs: Sequence[tuple[str, str]]) -> None:
        self.model, self.version = model, version
        self.names = tuple(name for name, _ in outputs)
        self.of_floats: tuple[bytes, np.dtype[Any]] | None = None
        """Of one tensor of floats: the response, with places for the shape, the data and the id."""
        if len(outputs) == 1 and outputs[0][1] in ("FP32", "FP64"):
            tensor = {"name": outputs[0][0], "datatype": outputs[0][1], "shape": 0, "data": 0}
            text = orjson.dumps({"model_name": model, "model_version": version, "outputs": [tensor]}).replace(b"%", b"%%")
            head, _, _ = text.rpartition(b'"shape":0,"data":0}]}')
            self.of_floats = head + b'"shape":%b,"data":%b}]%b}', DTYPES[outputs[0][1]]


def render_response(words: ResponseTemplate, request: InferRequest, arrays: Sequence[Array]) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part when raw tensors follow it. `arrays` are all outputs of `words`."""
    if words.of_floats is not None and request.outputs is None and not request.binary_default:
        form, dtype = words.of_floats
        array = arrays[0]
        if array.dtype == dtype:
            given = b"" if request.id is None else b',"id":' + orjson.dumps(request.id)
            data = orjson.dumps(array.ravel(), option=orjson.OPT_SERIALIZE_NUMPY)
            return form % (_shape(array.shape), data, given), None
    outputs, raws = [], []
    for name, array, binary in _asked(words.names, request, arrays):
        output: dict[str, Any] = {"name": name, "datatype": datatype_of(array), "shape": array.shape}
        if binary:
            raw = to_binary(array)
            output["parameters"] = {"binary_data_size": len(raw)}
            raws.append(raw)
        else:
            output["data"] = to_json(name, array)
        outputs.append(output)
    head: dict[str, Any] = {"model_name": words.model, "model_version": words.version, "outputs": outputs}
    if request.id is not None:
        head["id"] = request.id
    text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((text, *raws)), len(text)) if raws else (text, None)


@lru_cache(256)
def _shape(shape: tuple[int, ...]) -> bytes:
    return orjson.dumps(shape)


def _asked(names: Sequence[str], request: InferRequest, arrays: Sequence[Array]) -> Iterable[tuple[str, Array, bool]]:
    if request.outputs is None:
        return zip(names, arrays, repeat(request.binary_default))
    return ((name, arrays[names.index(name)], binary) for name, binary in request.outputs)


def error_body(message: str) -> bytes:
    """The one error shape that every client of the protocol understands."""
    return orjson.dumps({"error": message})


def _split(body: bytes, json_length: int) -> tuple[bytes, memoryview]:
    if json_length > len(body):
        raise RequestInvalid(f"Inference-Header-Content-Length is {json_length}, but the body has {len(body)} bytes")
    return body[:json_length], memoryview(body)[json_length:]


def _not_json(body: bytes, json_length: int | None, error: ValueError) -> str:
    hint = ""
    if json_length is None and (b"binary_data_size" in body[:65536] or not body.isascii()):
        hint = "; binary tensors need the header Inference-Header-Content-Length"
    return f"the request is not JSON: {error}{hint}"


def _inputs(given: object, tail: memoryview) -> tuple[dict[str, Array], dict[str, str]]:
    if type(given) is not list or not given:
        raise RequestInvalid("inputs: must be a list of at least one tensor")
    if len(given) > MOST_TENSORS:
        raise RequestInvalid(f"inputs: {len(given)} tensors, more than the {MOST_TENSORS} allowed")
    arrays: dict[str, Array] = {}
    datatypes: dict[str, str] = {}
    for place, tensor in enumerate(given):
        name, datatype = _named(tensor, place)
        if name in arrays:
            raise RequestInvalid(f"inputs[{place}].name: {name!r} occurs twice")
        datatypes[name] = datatype
        arrays[name], tail = _tensor(name, datatype, tensor, tail)
    if len(tail):
        raise RequestInvalid(f"{len(tail)} bytes follow the last binary tensor")
    return arrays, datatypes


def _named(tensor: object, place: int) -> tuple[str, str]:
    if type(tensor) is not dict:
        raise RequestInvalid(f"inputs[{place}]: must be an object")
    name, datatype = tensor.get("name"), tensor.get("datatype")
    if type(name) is not str or not name:
        raise RequestInvalid(f"inputs[{place}].name: must be text")
    if type(datatype) is not str or datatype not in DTYPES:
        raise RequestInvalid(f"input {name!r}: datatype must be one of {', '.join(DTYPES)}")
    return name, datatype


def _tensor(name: str, datatype: str, tensor: dict[str, Any], tail: memoryview) -> tuple[Array, memoryview]:
    shape, count = count_of(name, tensor.get("shape"))
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if type(parameters) is dict else None
    if size is None:
        if parameters is not None and type(parameters) is not dict:
            raise RequestInvalid(f"input {name!r}: parameters must be an object")
        if "data" not in tensor:
            raise RequestInvalid(f"input {name!r}: data is missing (or parameters.binary_data_size)")
        return from_json(name, datatype, shape, count, tensor["data"]), tail
    if type(size) is not int or size < 0:
        raise RequestInvalid(f"input {name!r}: binary_data_size must be a whole number, 0 or more")
    if "data" in tensor:
        raise RequestInvalid(f"input {name!r}: has both data and binary_data_size")
    if size > len(tail):
        raise RequestInvalid(f"input {name!r}: binary_data_size is {size}, but only {len(tail)} bytes are left in the body")
    return from_binary(name, datatype, shape, count, tail[:size]), tail[size:]


def _outputs(given: object, binary_default: bool) -> list[tuple[str, bool]] | None:  # noqa: FBT001 - private, one caller
    if given is None:
        return None
    if type(given) is not list or len(given) > MOST_TENSORS:
        raise RequestInvalid(f"outputs: must be a list of at most {MOST_TENSORS} tensors")
    found = []
    for place, output in enumerate(given):
        if type(output) is not dict or type(output.get("name")) is not str:
            raise RequestInvalid(f"outputs[{place}].name: must be text")
        parameters = _object(output, "parameters", f"outputs[{place}].parameters")
        if "classification" in parameters:
            raise RequestInvalid(f"outputs[{place}]: the classification extension is not served; take the output itself")
        binary = (
            _flag(parameters, "binary_data", f"outputs[{place}].parameters") if "binary_data" in parameters else binary_default
        )
        found.append((output["name"], binary))
    return found or None


def _object(document: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    value = document.get(key)
    if value is None:
        return {}
    if type(value) is not dict:
        raise RequestInvalid(f"{path}: must be an object")
    return value


def _flag(parameters: dict[str, Any], key: str, path: str) -> bool:
    value = parameters.get(key, False)
    if type(value) is not bool:
        raise RequestInvalid(f"{path}.{key}: must be true or false")
    return value


def read_id(value: object) -> str | None:
    """A request's id as it was given; None for none and for an empty one."""
    if value is None or value == "":
        return None
    if type(value) is not str or len(value) > LONGEST_ID:
        raise RequestInvalid(f"id: must be text of at most {LONGEST_ID} characters")
    return value
