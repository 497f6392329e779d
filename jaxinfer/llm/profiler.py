"""jax's profiler, on demand."""

from pathlib import Path

import jax

from jaxinfer.errors import InvalidParameter, Unsupported


class Profiler:
    """Takes one profile at a time; jax has one profiler a process."""

    def __init__(self) -> None:
        self._directory: Path | None = None

    def start(self, directory: Path) -> None:
        """Begins a profile that will be written into the directory, which is made.

        Raises:
            Unsupported: one is being taken.
            InvalidParameter: the directory cannot be made.
        """
        if self._directory is not None:
            raise Unsupported(f"a profile is being taken into {str(self._directory)!r}: stop it")
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise InvalidParameter(f"directory = {str(directory)!r:.300}: {error}") from error
        try:
            jax.profiler.start_trace(str(directory))
        except RuntimeError as error:  # somebody else in this process takes one
            raise Unsupported(f"no profile can be taken: {error}") from error
        self._directory = directory

    def stop(self) -> Path:
        """Ends the profile; returns where it was written.

        Raises:
            Unsupported: none is being taken.
        """
        if self._directory is None:
            raise Unsupported("no profile is being taken: start one")
        directory, self._directory = self._directory, None
        jax.profiler.stop_trace()
        return directory
