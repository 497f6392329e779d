"""What Prometheus is told: how busy the engine is, and how long requests take."""

from serve.metrics.metrics import Metrics

__all__ = ["Metrics"]
