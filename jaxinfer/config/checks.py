"""Checks that the specs make of themselves."""

import math

from jaxinfer.errors import ConfigError


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raises ``ConfigError`` with the field, its value and what is allowed."""
    if not condition:
        raise ConfigError(f"{field} = {value!r} is not allowed: it must be {allowed}")


def positive(owner: object, *fields: str) -> None:
    """Raises ``ConfigError`` where one of the fields is no finite number above 0."""
    for field in fields:
        value = getattr(owner, field)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_positive = is_number and math.isfinite(value) and value > 0
        require(is_positive, f"{type(owner).__name__}.{field}", value, "a number above 0")
