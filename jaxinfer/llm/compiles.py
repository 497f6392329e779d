"""What was compiled after everything should have been."""

import threading

from jax import monitoring

_COMPILED = "/jax/core/compile/backend_compile_duration"


class _Total:
    """Compilations of this process since it was first asked; one listener, however many ask."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()
        self._listens = False

    def listen(self) -> None:
        with self._lock:
            if not self._listens:
                monitoring.register_event_duration_secs_listener(self._note)
                self._listens = True

    def _note(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILED:
            with self._lock:
                self.count += 1


_TOTAL = _Total()


class CompileCounter:
    """Programs that this process has compiled, or taken from jax's cache of them, since the counter
    was made: whoever asked for them, on any thread."""

    def __init__(self) -> None:
        _TOTAL.listen()
        self._before = _TOTAL.count

    @property
    def count(self) -> int:
        return _TOTAL.count - self._before
