"""`python -m tests.fuzz TARGET [SECONDS]` with TARGET one of request, grpc, http: atheris (extra `fuzz`), guided by coverage.

Starts from well-formed requests; what it finds lies in build/fuzz/TARGET and is printed.
"""

import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["spoke_agent.server"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
WORDS = (
    *('"inputs"', '"outputs"', '"parameters"', '"id"', '"name"', '"x"', '"shape"', '"datatype"', '"data"', '"binary_data_size"'),
    *(
        '"binary_data"',
        '"binary_data_output"',
        '"BYTES"',
        '"FP16"',
        '"BOOL"',
        '"INT64"',
        '"UINT64"',
        '"UINT8"',
        "[]",
        "{}",
        "[1,2]",
    ),
    *("true", "null", "-1", "0", "9223372036854775808", "1e999", "NaN", '["a","b"]', "[[1],[2]]", "shared_memory_region"),
    *("Content-Length: ", "Transfer-Encoding: chunked", "Content-Encoding: gzip", "Expect: 100-continue", " HTTP/1.1"),
)
"""Words of the formats, so that the fuzzer need not guess them letter by letter."""


def seeds() -> dict[str, list[bytes]]:
    """Well-formed requests of each kind."""
    from spoke_agent.server.grpc.messages import MESSAGES

    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
    plain = json.dumps({"id": "r", "inputs": [{**tensor, "data": [1, 2.5]}], "outputs": [{"name": "y"}]}).encode()
    raw = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 8}}]}).encode()
    message = MESSAGES["ModelInferRequest"](model_name="m", id="r", raw_input_contents=[bytes(8)], inputs=[tensor])
    typed = MESSAGES["ModelInferRequest"](model_name="m", inputs=[{**tensor, "contents": {"fp32_contents": [1, 2]}}])
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(plain)
    chunked = b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    upgrade = b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    return {
        "request": [b"\x01\x00" + plain, (len(raw) & ~1).to_bytes(2, "big") + raw + b" " * (len(raw) & 1) + bytes(8)],
        "grpc": [message.SerializeToString(), typed.SerializeToString()],
        "http": [head + plain, head + plain + head + plain, chunked, upgrade],
    }


def main(name: str, seconds: int = 60) -> None:
    """Until the time is over or a law is broken (exit status 77)."""
    corpus = ROOT / "build" / "fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for place, seed in enumerate(seeds()[name]):
        (corpus / f"seed-{place}").write_bytes(seed)
    words = corpus.parent / f"{name}.words"
    words.write_text("".join(f"w{i}={json.dumps(word)}\n" for i, word in enumerate(WORDS)))
    flags = [
        f"-dict={words}",
        f"-max_total_time={seconds}",
        "-timeout=5",
        "-rss_limit_mb=1024",
        f"-artifact_prefix={corpus}/found-",
    ]
    atheris.Setup([sys.argv[0], str(corpus), *flags], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
