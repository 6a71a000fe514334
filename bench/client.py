"""A gRPC client as benches need it."""

from __future__ import annotations

from solo_fast.gateway.wire import solo_pb2, solo_pb2_grpc
from tests.harness import ROOT

COUNTER = (ROOT / "examples" / "counter.py").read_text()
TENANT = (("x-tenant-id", "bench"),)
CONVERSATION = 30
"""RPCs between two deploys of a client that goes on working: some 20 ms, in which the pool is refilled."""


class Deployer:
    """Deploys one service after the other, each under an id of its own."""

    def __init__(self, kernel: solo_pb2_grpc.SoloKernelStub, code: str = COUNTER) -> None:
        self._kernel = kernel
        self._code = code
        self._made = 0

    def deploy(self) -> None:
        self._made += 1
        request = solo_pb2.DeployRequest(service_id=f"d{self._made}", code=self._code)
        answer = self._kernel.Deploy(request, metadata=TENANT)
        assert answer.status == "ok", answer

    def status(self) -> None:
        """An RPC that does nothing."""
        self._kernel.Status(solo_pb2.StatusRequest(service_id=f"d{self._made}"), metadata=TENANT)

    def converse(self) -> None:
        """What a client does that has just deployed a service, and uses it."""
        for _ in range(CONVERSATION):
            self.status()

    def kill_all(self) -> None:
        for number in range(1, self._made + 1):
            self._kernel.Kill(solo_pb2.KillRequest(service_id=f"d{number}", force=True), metadata=TENANT)
