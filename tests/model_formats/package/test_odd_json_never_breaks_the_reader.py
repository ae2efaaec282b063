"""Any value anywhere in a manifest, an index or a signature: it opens, or it is refused by name. No other exception gets out."""

import base64
import contextlib
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_formats.core.errors import RefusedError
from model_formats.package import missing, open_package
from model_formats.signing.signature import KeySigner, sign_package, verify_package
from tests.samples.model_folder import packed

ODD = st.sampled_from([None, True, -1, 0, 1 << 70, 1.5, "", "x", "sha256:" + "0" * 64, "../x", [], {}, [[]], {"a": {}}])


def places(page, at=()):
    """Every path into a JSON value."""
    yield at
    items = page.items() if isinstance(page, dict) else enumerate(page) if isinstance(page, list) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def changed(page, at, value):
    if not at:
        return value
    copy = json.loads(json.dumps(page))
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return copy


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("package"))


@settings(max_examples=150)
@given(data=st.data())
def test_manifests_and_indexes(package, data):
    layout, index = package
    page = json.loads(layout.path(index).read_bytes())
    manifest = json.loads(layout.path(page["manifests"][0]["digest"]).read_bytes())
    if data.draw(st.booleans()):
        manifest = changed(manifest, data.draw(st.sampled_from(list(places(manifest)))), data.draw(ODD))
        raw = json.dumps(manifest).encode()
        page["manifests"][0] |= {"digest": layout.put(raw), "size": len(raw)}
    else:
        page = changed(page, data.draw(st.sampled_from(list(places(page)))), data.draw(ODD))
    forged = layout.put(json.dumps(page).encode())
    with contextlib.suppress(RefusedError):
        missing(layout, forged, 1000, "onnx-int8")
        open_package(layout, forged).check("onnx-int8")


@settings(max_examples=150)
@given(data=st.data())
def test_signature_bundles_and_statements(package, data):
    layout, index = package
    signer = KeySigner.generate()
    page = json.loads(sign_package(layout, index, signer))
    if data.draw(st.booleans()):
        page = changed(page, data.draw(st.sampled_from(list(places(page)))), data.draw(ODD))
        bundle = json.dumps(page).encode()
    else:
        payload = json.loads(base64.b64decode(page["dsseEnvelope"]["payload"]))
        bundle = signer.bundle(
            json.dumps(changed(payload, data.draw(st.sampled_from(list(places(payload)))), data.draw(ODD))).encode()
        )
    with contextlib.suppress(RefusedError):
        verify_package(layout, index, bundle, signer.policy, datetime(2026, 6, 1, tzinfo=UTC))
