"""Who, when, which slot, which page: requests in, token events out; see README.md."""

from jaxinfer.engine.engine import Engine
from jaxinfer.engine.limits import CacheGroup, EngineLimits
from jaxinfer.engine.request import Request

__all__ = ["CacheGroup", "Engine", "EngineLimits", "Request"]
