"""The wire: a model served over gRPC and HTTP; imports no jax."""
