"""Powers of two, the sizes that chips are good at."""


def power_of_two_from(x: int) -> int:
    """The least power of two that is not below ``x``, for ``x >= 1``."""
    return 1 << (x - 1).bit_length()


def power_of_two_to(x: int) -> int:
    """The largest power of two that is not above ``x``; 1 for ``x < 1``."""
    return 1 << max(x, 1).bit_length() - 1
