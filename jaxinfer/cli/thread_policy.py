"""How the threads of this process share the cores of a CPU that a model runs on."""

import os
from contextlib import suppress
from pathlib import Path


def stop_preempting() -> None:
    """From now on no thread of this process interrupts another one when it wakes up.

    By default Linux gives a thread that wakes up the core of one that computes, and takes it back
    microseconds later. A server's event loop and gRPC's threads wake up for every token of every
    stream, so kernels would be interrupted a hundred times a step. Threads of ``SCHED_BATCH`` have
    the same share of the cores, but wait until one is free or the few milliseconds of whoever has
    it are over, be that another process; most messages of a step are then sent in one go. Threads
    and processes that are started later are like those that start them.

    A policy that somebody chose for the process stays as it is. Where there is no such policy, or
    it is not allowed, nothing changes.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    with suppress(OSError):  # no /proc
        for thread in Path("/proc/self/task").iterdir():
            _stop_thread(int(thread.name))


def _stop_thread(thread: int) -> None:
    with suppress(OSError):  # it has ended, or a sandbox refuses
        if os.sched_getscheduler(thread) == os.SCHED_OTHER:
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
