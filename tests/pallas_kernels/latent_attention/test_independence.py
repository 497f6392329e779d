"""What must leave no trace in a row's numbers: what it is for every attention, and nothing else."""

from tests.pallas_kernels.independence import *  # noqa: F403
