"""The peers, each written as fairly as possible: same model and threads, same JSON, uvloop and httptools where they can.

`python -m tests.bench.serving.peers NAME PORT MODEL` with NAME one of noop, asgi, fastapi.
"""

import asyncio
import sys
from pathlib import Path

import numpy as np
import orjson


def session(path: str):
    """ONNX Runtime with the same settings as ours."""
    from model_formats.runtimes.onnx import open_onnx

    return open_onnx(Path(path))


def noop(port: int, path: str) -> None:
    """Our transport, answering an answer that is ready."""
    import uvloop

    from spoke_agent.server.http.transport import HttpServer

    x = np.zeros((1, 1, 8, 8), np.float32)
    data = session(path).run({"image": x}, ["logits"])[0]
    ready = orjson.dumps(answer("r", data), option=orjson.OPT_SERIALIZE_NUMPY)

    async def main() -> None:
        server = HttpServer(lambda exchange: exchange.reply(200, ready))
        await server.listen_tcp("127.0.0.1", port)
        await asyncio.Event().wait()

    uvloop.run(main())


def answer(request_id, logits):
    """The protocol's answer."""
    tensor = {"name": "logits", "datatype": "FP32", "shape": logits.shape, "data": logits.reshape(-1)}
    return {"model_name": "digits", "model_version": "1", "outputs": [tensor], "id": request_id}


def asgi(port: int, path: str) -> None:
    """A bare ASGI application under uvicorn: no framework, orjson, the model run inline."""
    import uvicorn

    model = session(path)

    async def app(scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = orjson.loads(body)
        tensor = request["inputs"][0]
        x = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        out = orjson.dumps(answer(request.get("id"), model.run({"image": x}, ["logits"])[0]), option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(out))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": out})

    uvicorn.run(app, port=port, log_level="error", access_log=False, loop="uvloop", http="httptools", lifespan="off")


def fastapi(port: int, path: str) -> None:
    """The FastAPI route everybody writes first, with typed bodies and orjson for the answer."""
    import uvicorn
    from fastapi import FastAPI, Response
    from pydantic import BaseModel

    model = session(path)

    class Tensor(BaseModel):
        name: str
        shape: list[int]
        datatype: str
        data: list[float]

    class Request(BaseModel):
        id: str | None = None
        inputs: list[Tensor]

    app = FastAPI()

    @app.post("/v2/models/digits/infer")
    async def infer(request: Request) -> Response:
        tensor = request.inputs[0]
        x = np.array(tensor.data, np.float32).reshape(tensor.shape)
        found = answer(request.id, model.run({"image": x}, ["logits"])[0])
        return Response(orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    uvicorn.run(app, port=port, log_level="error", access_log=False, loop="uvloop", http="httptools")


if __name__ == "__main__":
    {"noop": noop, "asgi": asgi, "fastapi": fastapi}[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
