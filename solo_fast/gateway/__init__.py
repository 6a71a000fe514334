"""The two doors, gRPC and REST: thin projections of `operations.table.TABLE`."""
