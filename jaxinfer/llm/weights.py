"""The weights of an engine's model: other ones, and where they are while nobody needs them."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax

from jaxinfer.checkpoint.load import no_progress
from jaxinfer.config import ModelConfig
from jaxinfer.engine.build import EngineBuilder
from jaxinfer.engine.engine import Engine
from jaxinfer.engine.errand import WaitFor
from jaxinfer.engine.memory import exhaustion_is_capacity_error, usable_memory
from jaxinfer.engine.runner import DeviceRunner
from jaxinfer.errors import Asleep, CapacityError, InvalidParameter, ShapeMismatch, Unsupported
from jaxinfer.llm.opening import OpenModel, open_model
from jaxinfer.models.model import Model
from jaxinfer.shapes import Tree


class ModelWeights:
    """Exchanges them and puts them away, between steps; one change after the other.

    What fails has changed nothing, nor has what is interrupted before it was made.
    """

    def __init__(
        self,
        engine: Engine,
        builder: EngineBuilder,
        blank: Model,
        *,
        source: str | Path,
        load_format: str,
        seed: int,
        finish: Callable[[Future], Any],
    ):
        """
        Args:
            blank: the model's shapes, as checkpoints have them.
            source, load_format, seed: where its weights have come from.
            finish: waits for what was asked of the engine, and returns or raises what it brings.
        """
        assert isinstance(engine.runner, DeviceRunner)
        self._engine, self._runner = engine, engine.runner
        self._builder, self._blank = builder, blank
        self._source, self._load_format, self._seed = source, load_format, seed
        self._finish = finish
        self._changing = threading.Lock()
        self._shapes = engine.runner.model.shapes
        self._in_host: Tree | None = None

    def update(self, path: str | Path, *, timeout: float | None = None) -> None:
        """Takes those of another checkpoint, for requests that begin from now on.

        They are read beside the old ones, which needs room for both. Then the requests that were
        begun end with the old ones, while others wait. The prefix cache is forgotten.

        Raises:
            InvalidParameter: a model of another architecture.
            ModelNotFound, CheckpointError: files that are not there, or do not fit.
            CapacityError: no room for them beside the old ones.
            TimeoutError: the requests that were begun did not end in ``timeout`` seconds.
            Asleep, EngineClosed, Unsupported: now is no time for it.
        """
        with self._change():
            if self._engine.is_asleep:
                raise Asleep("the model sleeps: wake it before it gets other weights")
            with closing(open_model(path, skip_tokenizer=True)) as opened:
                _verify_same(opened.config, self._blank.config)
                self._verify_room()
                model = self._load(opened)

            def exchange() -> None:
                self._runner.exchange(model)
                self._engine.forget_prefixes()
                self._source, self._load_format = path, "auto"

            self._do(exchange, WaitFor.BEGUN, timeout)

    def sleep(self, level: int = 1, *, timeout: float | None = None) -> None:
        """Frees the device's memory once all requests have ended; new ones are refused at once.

        Args:
            level: 1 keeps the weights in the host's memory, 2 reads them again to wake.

        Raises:
            InvalidParameter: another level.
            TimeoutError: the requests did not end in ``timeout`` seconds; it is awake again.
            Asleep, EngineClosed, Unsupported: now is no time for it.
        """
        if level not in (1, 2):
            raise InvalidParameter(f"level = {level!r:.100} is not allowed: it must be 1 or 2")
        with self._change():
            if self._engine.is_asleep:
                raise Asleep("the model sleeps already")

            is_away = False

            def put_away() -> None:
                nonlocal is_away
                kept = jax.device_get(self._runner.model.params) if level == 1 else None
                self._runner.release()
                self._in_host = kept
                is_away = True
                _return_freed_memory()

            self._engine.fall_asleep()
            try:
                self._do(put_away, WaitFor.ALL, timeout)
            except BaseException:
                if not is_away:
                    self._engine.wake()
                raise

    def wake(self) -> None:
        """Brings the weights back, with an empty cache, and takes requests; awake it does nothing.

        Raises:
            ModelNotFound, CheckpointError: they are no longer where they came from.
            CapacityError: somebody else has taken the memory.
            EngineClosed, Unsupported: now is no time for it.
        """
        with self._change():
            if not self._engine.is_asleep:
                return
            with exhaustion_is_capacity_error():
                model = self._model_in_host() or self._model_of_source()

            def bring_back() -> None:
                with exhaustion_is_capacity_error():
                    self._runner.take_up(model)
                self._engine.forget_prefixes()
                self._in_host = None
                self._engine.wake()

            self._do(bring_back, WaitFor.FLIGHT, None)

    @contextmanager
    def _change(self) -> Iterator[None]:
        if not self._changing.acquire(blocking=False):
            raise Unsupported("the weights are being changed already: wait for the end of that")
        try:
            yield
        finally:
            self._changing.release()

    def _do(self, function: Callable[[], None], wait_for: WaitFor, timeout: float | None) -> None:
        """Has it done; who is interrupted takes it back, unless it has begun."""
        future = self._engine.between_steps(function, wait_for=wait_for, timeout=timeout)
        try:
            self._finish(future)
        except BaseException:
            if not future.cancel():
                wait([future])
            raise

    def _verify_room(self) -> None:
        budget = self._runner.budget
        need, room = budget.weights, usable_memory(self._blank.mesh, 1.0) - budget.total
        if need > room:
            raise CapacityError(
                f"the new weights take {need:,} bytes of each device beside the old ones, and"
                f" {max(room, 0):,} are free: start with a lower memory_utilization or num_pages"
            )

    def _load(self, opened: OpenModel) -> Model:
        with exhaustion_is_capacity_error():
            weights = opened.load(self._blank, seed=self._seed, progress=no_progress)
            model = self._builder.lay_out(weights, release=True)
            jax.block_until_ready(model.params)
        if model.shapes.params != self._shapes.params:
            raise ShapeMismatch("the new weights lie in other shapes than the old ones")
        return model

    def _model_in_host(self) -> Model | None:
        if self._in_host is None:
            return None
        where = jax.tree.map(lambda leaf: leaf.sharding, self._shapes.params)
        params = jax.block_until_ready(jax.device_put(self._in_host, where))
        return replace(self._shapes, params=params)

    def _model_of_source(self) -> Model:
        opening = open_model(self._source, skip_tokenizer=True, load_format=self._load_format)
        with closing(opening) as opened:
            _verify_same(opened.config, self._blank.config)
            return self._load(opened)


def _return_freed_memory() -> None:
    """To the system, where the device is the CPU: glibc keeps what was freed in pieces that are not
    very large."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _verify_same(config: ModelConfig, ours: ModelConfig) -> None:
    """Of the same architecture; the dtype in the files is another matter."""
    names = [each.name for each in fields(ours) if each.name != "dtype"]
    differing = [name for name in names if getattr(config, name) != getattr(ours, name)]
    if differing:
        raise InvalidParameter(
            f"the new weights are of another architecture: {', '.join(differing)} differ; give"
            " those of the same"
        )
