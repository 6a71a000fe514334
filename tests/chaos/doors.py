"""The same few operations over REST and over gRPC, for clients that must know exactly what they were told."""

from __future__ import annotations

import http.client
import json
from typing import Any, Protocol

import grpc

from solo_fast.gateway.wire import solo_pb2 as pb
from solo_fast.gateway.wire import solo_pb2_grpc
from tests.harness import DEADLINE_S, Server

PARTINGS = (OSError, http.client.HTTPException)


class Lost(Exception):
    """No answer came: the operation may or may not have been carried out."""


class Refused(Exception):
    """An error came back."""


class Door(Protocol):
    """One client's connection. Every method raises Lost or Refused."""

    def deploy(self, service_id: str, code: str, *, replace: bool) -> int: ...
    def kill(self, service_id: str, *, force: bool) -> None: ...
    def call(self, service_id: str, method: str, *arguments: Any) -> Any: ...
    def register(self, service_id: str, name: str, ttl: int, metadata: dict[str, str]) -> str: ...
    def heartbeat(self, handle: str) -> None: ...
    def unregister(self, handle: str) -> None: ...
    def services(self) -> dict[str, int]: ...
    def registrations(self) -> dict[tuple[str, str], str]: ...
    def close(self) -> None: ...


class Rest:
    def __init__(self, server: Server, tenant: str) -> None:
        self._tenant = tenant
        self._connection = http.client.HTTPConnection(server.host, server.http_port, timeout=DEADLINE_S)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"x-tenant-id": self._tenant, "content-type": "application/json"}
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = self._connection.getresponse()
            answer = json.loads(response.read())
        except PARTINGS as error:
            raise Lost(str(error)) from None
        if response.status >= 400:
            raise Refused(f"{method} {path}: {response.status} {answer}")
        return answer

    def deploy(self, service_id: str, code: str, *, replace: bool) -> int:
        body = {"service_id": service_id, "code": code, "replace": replace}
        return int(self._ask("POST", "/services", body)["version"])

    def kill(self, service_id: str, *, force: bool) -> None:
        self._ask("DELETE", f"/services/{service_id}?{'force=true' if force else 'grace_ms=500'}")

    def call(self, service_id: str, method: str, *arguments: Any) -> Any:
        return self._ask("POST", f"/services/{service_id}/call/{method}", list(arguments))["result"]

    def register(self, service_id: str, name: str, ttl: int, metadata: dict[str, str]) -> str:
        body = {"service_id": service_id, "service_name": name, "ttl_seconds": ttl, "metadata": metadata}
        return str(self._ask("POST", "/registry", body)["service_handle"])

    def heartbeat(self, handle: str) -> None:
        self._ask("PUT", f"/registry/{handle}")

    def unregister(self, handle: str) -> None:
        self._ask("DELETE", f"/registry/{handle}")

    def services(self) -> dict[str, int]:
        listed = self._ask("GET", "/services?limit=1000")["services"]
        return {one["service_id"]: self._ask("GET", f"/services/{one['service_id']}")["version"] for one in listed}

    def registrations(self) -> dict[tuple[str, str], str]:
        found = self._ask("GET", "/registry")["services"]
        return {(one["service_id"], one["service_name"]): one["service_handle"] for one in found}

    def close(self) -> None:
        self._connection.close()


class Grpc:
    def __init__(self, server: Server, tenant: str) -> None:
        self._metadata = (("x-tenant-id", tenant),)
        self._channel = grpc.insecure_channel(
            f"{server.host}:{server.grpc_port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._stub = solo_pb2_grpc.SoloKernelStub(self._channel)

    def _ask(self, rpc: str, request: Any) -> Any:
        try:
            answer = getattr(self._stub, rpc)(request, metadata=self._metadata, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            if "solo-error" in dict(error.trailing_metadata() or ()):
                raise Refused(f"{rpc}: {error.code()} {error.details()}") from None
            raise Lost(str(error.details())) from None
        if getattr(answer, "error", ""):
            raise Refused(f"{rpc}: {answer.error}")
        return answer

    def deploy(self, service_id: str, code: str, *, replace: bool) -> int:
        return int(self._ask("Deploy", pb.DeployRequest(service_id=service_id, code=code, replace=replace)).version)

    def kill(self, service_id: str, *, force: bool) -> None:
        self._ask("Kill", pb.KillRequest(service_id=service_id, force=force, timeout_ms=500))

    def call(self, service_id: str, method: str, *arguments: Any) -> Any:
        text = json.dumps(arguments).encode()
        return json.loads(
            self._ask("Call", pb.CallRequest(service_id=service_id, method=method, arguments=text)).result
        )

    def register(self, service_id: str, name: str, ttl: int, metadata: dict[str, str]) -> str:
        request = pb.RegisterServiceRequest(
            service_id=service_id, service_name=name, ttl_seconds=ttl, metadata=metadata
        )
        return str(self._ask("RegisterService", request).service_handle)

    def heartbeat(self, handle: str) -> None:
        self._ask("Heartbeat", pb.HeartbeatRequest(service_handle=handle))

    def unregister(self, handle: str) -> None:
        self._ask("UnregisterService", pb.UnregisterServiceRequest(service_handle=handle))

    def services(self) -> dict[str, int]:
        listed = self._ask("List", pb.ListRequest(limit=1000)).services
        return {
            one.service_id: self._ask("Status", pb.StatusRequest(service_id=one.service_id)).version for one in listed
        }

    def registrations(self) -> dict[tuple[str, str], str]:
        found = self._ask("GetServices", pb.GetServicesRequest()).services
        return {(one.service_id, one.service_name): one.service_handle for one in found}

    def close(self) -> None:
        self._channel.close()
