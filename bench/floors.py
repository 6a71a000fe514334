"""The floors that the gateways are compared with: a bare BlackSheep and a bare grpc.aio echo, as Solo runs them.

`python -m bench.floors` starts both on free ports and prints them as JSON; it ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys

import grpc
import uvicorn
import uvloop
from blacksheep import Application, Content, Response

from solo_fast.gateway.wire import solo_pb2


def rest_app() -> Application:
    app = Application()

    @app.router.post("/echo")
    async def echo(request) -> Response:
        return Response(200, content=Content(b"application/json", await request.read()))

    return app


async def grpc_echo(request: solo_pb2.CallRequest, context: grpc.aio.ServicerContext) -> solo_pb2.CallResponse:
    return solo_pb2.CallResponse(result=request.arguments)


async def main() -> None:
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        grpc_echo,
        request_deserializer=solo_pb2.CallRequest.FromString,
        response_serializer=solo_pb2.CallResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(rest_app(), loop="none", http="httptools", log_level="error", access_log=False)
    rest = asyncio.create_task(uvicorn.Server(config).serve([listening]))
    print(json.dumps({"grpc": grpc_port, "http": listening.getsockname()[1]}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    rest.cancel()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(main())
