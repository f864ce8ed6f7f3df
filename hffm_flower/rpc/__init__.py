"""The words that devices of a cluster exchange directly, over gRPC.

`exchange.proto` is the protocol; the stubs beside it are generated and committed, since the
app bundle ships Python alone. `tickets` says who may speak, `codec` how parcels become bytes
and what is refused, `channel` how a connection is made.
"""
