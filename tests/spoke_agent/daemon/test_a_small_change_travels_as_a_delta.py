"""Version 2 differs little from version 1: planned, offered in a directive, carried as blocks, applied, reported."""

from model_formats.delta.plan import plan_deltas
from model_formats.package import open_package
from sync.protocol.messages import DeltaOffer
from tests.samples.model_folder import WEIGHTS, packed
from tests.samples.onnx_files import base_tensors, finetuned, write_onnx
from tests.spoke_agent.daemon.conftest import ME


def release(field, folder, version, tensors):
    weights = write_onnx(folder / f"weights-{version}.onnx", tensors).read_bytes()
    layout, index = packed(folder / f"build-{version}", version=version, weights=weights)
    for blob in (layout.folder / "blobs" / "sha256").iterdir():
        field.hub.layout.put(blob.read_bytes())
    return field.hub.release(index, version)


def test_a_fine_tune_costs_a_fraction_and_the_report_says_so(field, tmp_path):
    tensors = base_tensors()
    first = release(field, tmp_path, 1, tensors)
    field.start()
    field.hub.want(ME, first, 1)
    field.settled()
    whole = field.hub.reports[ME][-1].evidence
    assert not whole.used_delta

    second = release(field, tmp_path, 2, finetuned(tensors))
    planned = plan_deltas(field.hub.layout, second, [first], field.hub.layout)
    offers = tuple(DeltaOffer(base=d.base, target=d.target, delta=d.delta, size=d.size) for d in planned)
    target = open_package(field.hub.layout, second).files[WEIGHTS]
    assert target.digest in {o.target for o in offers}
    field.hub.want(ME, second, 2, deltas=offers)
    field.until(lambda: (field.hub.reports[ME][-1].version, str(field.hub.reports[ME][-1].state)) == (2, "committed"))

    last = field.hub.reports[ME][-1]
    assert last.evidence.used_delta
    assert last.evidence.bytes_received < 0.6 * last.evidence.bytes_total
    assert last.serving[0].index == second
