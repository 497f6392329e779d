"""What operators may do with a server while it runs."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from jaxinfer.errors import InvalidParameter, Unsupported
from serve.errors import Forbidden, NotFound
from serve.model import ModelControl, ServedModel
from serve.settings import ServeSettings

#: Seconds for requests to end, and the most that may be asked for.
DEFAULT_TIMEOUT, MAX_TIMEOUT = 300.0, 86_400.0


class Admin:
    """Does what it is asked for, whichever protocol that came by."""

    def __init__(
        self,
        model: ServedModel,
        settings: ServeSettings,
        *,
        begin_drain: Callable[[float | None], int],
        show_health: Callable[[bool], Awaitable[None]],
    ):
        """
        Args:
            begin_drain: given the seconds for requests under way, tells how many those are.
            show_health: tells everybody whether requests are answered.
        """
        self._model, self._settings = model, settings
        self._begin_drain, self._show_health = begin_drain, show_health

    def drain(self, seconds: float | None) -> int:
        """Begins it; returns how many requests have not ended.

        Raises:
            InvalidParameter: no number of seconds.
        """
        return self._begin_drain(None if seconds is None else _checked("seconds", seconds))

    def reset_prefix_cache(self) -> None:
        """No prompt finds anything that was cached before."""
        self._model.engine.forget_prefixes()

    async def start_profile(self, directory: str) -> None:
        """Into a folder below the server's.

        Raises:
            Unsupported: the server has no such folder, or a profile is being taken.
            Forbidden: it lies elsewhere.
        """
        place = _below(self._settings.profile_dir, directory, "--profile-dir")
        await _to_its_end(partial(self._control.start_profile, place))

    async def stop_profile(self) -> Path:
        """Returns where the profile is.

        Raises:
            Unsupported: none is being taken.
        """
        return await _to_its_end(self._control.stop_profile)

    async def update_weights(self, path: str, timeout: float | None) -> None:
        """Those of another checkpoint, below the server's folder of them.

        Raises:
            Unsupported: the server has no such folder.
            Forbidden: it lies elsewhere.
            NotFound: nothing is there.
            JaxInferError, TimeoutError: as ``LLM.update_weights``.
        """
        seconds = _timeout(timeout)
        if not path:
            raise InvalidParameter("path is empty: name a checkpoint below --weights-dir")
        place = _below(self._settings.weights_dir, path, "--weights-dir")
        if not os.path.exists(place):  # which is also said of what is no path at all
            raise NotFound(f"path {path!r:.200}: there is no such checkpoint below --weights-dir")
        await _to_its_end(partial(self._control.update_weights, place, timeout=seconds))

    async def sleep(self, level: int | None, timeout: float | None) -> None:
        """Frees the device once all requests have ended.

        Raises:
            JaxInferError, TimeoutError: as ``LLM.sleep``.
        """
        level = 1 if level is None else level
        call = partial(self._control.sleep, level, timeout=_timeout(timeout))
        await self._show_health(False)  # first of all, whatever becomes of it
        await self._shown(call)

    async def wake(self) -> None:
        """Answers requests again.

        Raises:
            JaxInferError: as ``LLM.wake_up``.
        """
        await self._shown(self._control.wake_up)

    async def _shown(self, call: Callable[[], Any]) -> None:
        """Makes the call, and then shows whether requests are answered."""

        async def both() -> None:
            try:
                await asyncio.to_thread(call)
            finally:
                await self._show_health(not self._model.engine.is_asleep)

        await asyncio.shield(asyncio.ensure_future(both()))

    @property
    def _control(self) -> ModelControl:
        if self._model.control is None:
            raise Unsupported("this model cannot be controlled")
        return self._model.control


async def _to_its_end(call: Callable[[], Any]) -> Any:
    """In another thread. Who waits may go; it goes on all the same."""
    return await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(call)))


def _timeout(seconds: float | None) -> float:
    return DEFAULT_TIMEOUT if seconds is None else _checked("timeout_seconds", seconds)


def _checked(name: str, seconds: float) -> float:
    if not 0 <= seconds <= MAX_TIMEOUT:  # as NaN is not, either
        raise InvalidParameter(
            f"{name} = {seconds!r} is not allowed: it must be a number from 0 to {MAX_TIMEOUT:g}"
        )
    return seconds


def _below(base: Path | None, path: str, flag: str) -> Path:
    """A path below a folder, wherever links lead."""
    if base is None:
        raise Unsupported(f"this server was started without {flag}")
    try:
        root, place = base.resolve(), (base / path).resolve()
    except (OSError, ValueError) as error:  # too long, or no characters of a path
        raise InvalidParameter(f"{path!r:.200} is no path: {error}") from error
    if not place.is_relative_to(root):
        raise Forbidden(f"{path!r:.200} does not lie below the folder of {flag}")
    return place
