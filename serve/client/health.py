"""What servers say about themselves: ``grpc.health.v1``."""

from typing import Any

from grpc_health.v1 import health_pb2

from serve.client.errors import ServerError, Unavailable
from serve.client.retry import RetryPolicy

#: Ready to answer; "" is alive.
INFERENCE = "jaxinfer.v1.Inference"
#: Whoever waits for a server asks again for as long as there is time.
UNTIL_READY = RetryPolicy(max_attempts=2**31, initial_backoff=0.1, max_backoff=1.0)


def is_serving(response: Any) -> bool:
    """Whether a service answers."""
    return response.status == health_pb2.HealthCheckResponse.SERVING


def has_ended() -> ServerError:
    """What a watch means that ends by itself."""
    return Unavailable("the server has ended the health watch")
