"""What attention over pages shares, of whatever kind: rows, pools, and the loops of the kernels.

No operation: it has nothing to call, and knows neither of those that use it.
"""
