"""The protocol ``jaxinfer.v1`` over gRPC."""
