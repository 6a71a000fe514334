"""The two doors, gRPC and REST: thin projections of `operations.table.TABLE`."""

import os

# grpcio reads this once, when it is imported. Its EventEngine hands every read of a server from one thread to another,
# which is a tenth of an RPC's round trip.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
