"""Forms of JSON requests that were read before: all that such a request says but its id and its numbers.

A program asks in the same words every time. A form is those words with a hole for the data of the one tensor, and before it one
for the id where there is one. What has the same words, and one JSON value in each hole, is a request that says the same; so only
the values are left to read. Few forms are known at a time, and they are short.
"""

from json import JSONDecoder
from typing import Final

import orjson
from msgspec.structs import replace

from spoke_agent.server.protocol.json_codec import LONGEST_ID, InferRequest, parse_request
from spoke_agent.server.protocol.tensors import floats_of, from_json

__all__ = ["RequestTemplates"]

_MOST: Final = 8
_LONGEST: Final = 1024
_LARGEST: Final = 1 << 16
"""Bodies from which a form is learned; in larger ones the words are nothing beside the numbers."""
_TRIES: Final = 64
"""Requests of no known form that are looked at for one. After that they only pass through..."""
_PATIENCE: Final = 10_000
"""...until so many came; then all is learned anew."""


class _Template:
    """One form: what its requests say besides the id and the data."""

    __slots__ = ("after", "before", "between", "data_end", "floats", "id_start", "like", "tensor")

    def __init__(self, before: bytes, between: bytes | None, after: bytes, request: InferRequest) -> None:
        """`request` is one of this form."""
        self.before = before
        """Words up to the first hole."""
        self.between = between
        """From the id to the data; None when requests of this form have no id."""
        self.after = after
        self.id_start, self.data_end = len(before), -len(after)
        ((name, array),) = request.inputs.items()
        self.tensor = name, request.datatypes[name], array.shape, array.size
        self.floats = floats_of(*self.tensor[1:])
        self.like = replace(request, id=None, inputs={})


class RequestTemplates:
    """Learned from what comes."""

    def __init__(self, *, most: int = _MOST, patience: int = _PATIENCE) -> None:
        """`most`: how many are known at a time; 0 is none. `patience`: requests of no known form until all is learned anew."""
        self._most, self._patience = most, patience
        self._known: list[_Template] = []
        self._strangers = 0

    def __len__(self) -> int:
        return len(self._known)

    def parse(self, body: bytes) -> InferRequest:
        """What `parse_request` makes of a body without binary tensors, and what it raises, to the letter."""
        for form in self._known:
            if not (body.startswith(form.before) and body.endswith(form.after)):
                continue
            start, name, between, like = form.id_start, None, form.between, form.like
            try:
                if between is not None:
                    end = body.find(b'"', start + 1) + 1  # of an id without a quote in it
                    if end - start > LONGEST_ID or not body.startswith(between, end):
                        continue
                    name, start = orjson.loads(body[start:end]) or None, end + len(between)
                data = orjson.loads(body[start : form.data_end])
            except orjson.JSONDecodeError:
                break
            array = form.floats(data)
            if array is None:
                array = from_json(*form.tensor, data)
            inputs = {form.tensor[0]: array}
            return InferRequest(name, inputs, like.datatypes, like.outputs, like.binary_default, like.parameters, form)
        request = parse_request(body, None)
        self._learn(body, request)
        return request

    def _learn(self, body: bytes, request: InferRequest) -> None:
        if len(body) > _LARGEST:
            return
        self._strangers += 1
        if self._strangers > self._patience:
            self._strangers = 0
            self._known.clear()
        if self._strangers < _TRIES and len(self._known) < self._most:
            form = _form_of(body, request)
            if form is not None:
                self._known.append(form)


def _form_of(body: bytes, request: InferRequest) -> _Template | None:
    """The form of a request that was read; None where it has none, or says more that is new with every request."""
    start = _value(b'"data":', body)
    if len(request.inputs) != 1 or "sticky" in request.parameters or not start:
        return None
    rest = body[start:].decode()
    try:
        end = JSONDecoder().raw_decode(rest)[1]
    except (ValueError, RecursionError):  # it is not where a value begins, or very deep
        return None
    before, between, after = body[:start], None, rest[end:].encode()
    if start + len(after) > _LONGEST:
        return None
    at = _value(b'"id":', before)
    if at and request.id is not None:
        before, between = before[:at], before[before.find(b'"', at + 1) + 1 :]
    # Two fillings, for with one alone what stands there might be read elsewhere by chance (of two equal keys, the last counts).
    for request_id, data in ((b'"?"', b"[]"), (b'"!"', b"[0]")):
        words = before + (b"" if between is None else request_id + between) + data + after
        if not _are_read(words, None if request.id is None else request_id, data):
            return None
    return _Template(before, between, after, request)


def _value(key: bytes, text: bytes) -> int:
    """Where the value of the first such key begins, one space skipped; 0 where there is no such key."""
    at = text.find(key)
    if at < 0:
        return 0
    at += len(key)
    return at + 1 if text[at : at + 1] == b" " else at


def _are_read(words: bytes, request_id: bytes | None, data: bytes) -> bool:
    """Whether these are read as the id and the data of such a request, and not as some other text or list."""
    try:
        document = orjson.loads(words)
    except orjson.JSONDecodeError:
        return False
    wanted = None if request_id is None else orjson.loads(request_id), orjson.loads(data)
    return (document.get("id"), document["inputs"][0].get("data")) == wanted
