"""How many connections the process has file descriptors for."""

import logging
import resource

_log = logging.getLogger(__name__)

#: For everything that is no client's connection.
_RESERVED = 256


def room_for(max_connections: int, num_ports: int) -> int:
    """How many connections each port may have: as many as wanted, or as there is room for.

    The limit of the process is raised as far as it needs and may be. Where all descriptors are
    taken, nobody can accept, open a file or write to a collector any more.
    """
    needed = max_connections * num_ports + _RESERVED
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not _is_enough(limit, needed):
        raised = needed if _is_enough(most, needed) else most
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, most))
            limit = raised
        except (ValueError, OSError):  # some systems have another limit besides
            pass
    if _is_enough(limit, needed):
        return max_connections
    room = max(1, (limit - _RESERVED) // num_ports)
    _log.warning(
        "each port has %d connections at most, not %d, because the process may have %d files:"
        " raise that (ulimit -n) to %d",
        room,
        max_connections,
        limit,
        needed,
    )
    return room


def _is_enough(limit: int, needed: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= needed
