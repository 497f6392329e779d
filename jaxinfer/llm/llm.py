"""``LLM``: the offline API, over the engine that also serves."""

import itertools
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from tqdm import tqdm

from jaxinfer.checkpoint.load import Progress
from jaxinfer.config import ModelConfig
from jaxinfer.engine.build import EngineBuilder, verify_page_size
from jaxinfer.engine.memory import exhaustion_is_capacity_error, usable_memory
from jaxinfer.errors import InvalidParameter, Unsupported
from jaxinfer.llm.background import Background
from jaxinfer.llm.compiles import CompileCounter
from jaxinfer.llm.interrupts import interrupts_held
from jaxinfer.llm.opening import OpenModel, open_model
from jaxinfer.llm.profiler import Profiler
from jaxinfer.llm.prompts import (
    Message,
    Prompt,
    PromptLike,
    encode,
    params_for_each,
    read_conversations,
    read_prompts,
)
from jaxinfer.llm.score import SCORING, Scorable, Score, read_scorables, score_of
from jaxinfer.llm.settings import verify_settings
from jaxinfer.llm.startup import PhaseProgress, StartupClock, no_phase_progress
from jaxinfer.llm.stream import RequestStream
from jaxinfer.llm.weights import ModelWeights
from jaxinfer.llm.xla_cache import keep_compiled_programs
from jaxinfer.models.model import Model
from jaxinfer.outputs import RequestOutput
from jaxinfer.sampling_params import RequestLimits, SamplingParams
from jaxinfer.tokenizer import Tokenizer
from sharding import make_mesh, platform_of

#: Without ``max_model_len`` a longer context than this is not served: every slot has a row of the
#: page table for it, and few who load a model for 128 thousand tokens have the memory for them.
DEFAULT_MAX_MODEL_LEN = 8192


class LLM:
    """A model that generates for lists of prompts; the names are vLLM's.

        with LLM("smollm2-135m") as llm:
            [output] = llm.generate(["The capital of France is"], SamplingParams(max_tokens=16))

    Everything it will ever run is compiled when it is made, and kept in jax's compilation cache for
    the next time. One LLM may be used by several threads; their requests share its steps.

    Attributes:
        config: what the model is made of.
        mesh: the devices that it is laid over.
        platform: what they are: ``cpu``, ``gpu`` or ``tpu``.
        dtype, kv_cache_dtype: of its weights and of its pages, by name.
        max_model_len: prompt and output of one sequence, in tokens.
        engine: what it stands on.
        tokenizer: of its prompts and outputs; None where it was made without.
        has_prompt_logprobs: it can give them.
        weight_bytes: of its weights on one device, each counted once in whatever forms it is held.
        num_active_params: parameters but those of the experts that one token does not go to.
        budget: bytes by use, and how many tokens the pages hold; printable.
        startup_seconds: how long each phase of its making took; weights are loaded while programs
            are compiled.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: str | Path | Tokenizer | None = None,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        quantization: str | None = None,
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 32,
        max_num_batched_tokens: int = 512,
        page_size: int = 64,
        num_pages: int | None = None,
        memory_utilization: float = 0.9,
        enable_prefix_caching: bool = True,
        enable_prompt_logprobs: bool = True,
        tensor_parallel_size: int = 1,
        mesh: Mesh | None = None,
        seed: int = 0,
        load_format: str = "auto",
        prefill_tokens: Sequence[int] | None = None,
        decode_steps: Sequence[int] = (1,),
        max_waiting_requests: int | None = None,
        max_waiting_tokens: int | None = None,
        request_limits: RequestLimits | None = None,
        progress: PhaseProgress = no_phase_progress,
    ):
        """
        Args:
            model: a directory (Hugging Face or Orbax), a ``.gguf`` file, a hub id, or a known small
                name; with ``load_format="dummy"`` also a name from ``configs/models``.
            tokenizer: another than the model's own: where to take it from, or one already made.
            skip_tokenizer_init: no tokenizer; prompts are token ids, texts of outputs are empty.
            dtype: ``float32``, ``bfloat16`` or ``float16``; "auto" is the checkpoint's own, and
                bfloat16 for quantised GGUF files, whose blocks are unpacked while they are read.
            kv_cache_dtype: of the pages; "auto" is ``dtype``.
            max_model_len: None is the model's own, at most ``DEFAULT_MAX_MODEL_LEN``.
            max_num_seqs: sequences in one step; the others wait.
            max_num_batched_tokens: tokens in one step; longer prompts come in chunks.
            page_size: tokens a page of the KV cache: 8, 16, 32, 64, 128 or 256.
            num_pages: None takes what the memory holds.
            memory_utilization: the share of the device's memory that everything may take: of a
                GPU's, the share of what XLA's client has, which is three quarters of the card
                unless XLA_CLIENT_MEM_FRACTION says otherwise (the command line sets 0.95).
            enable_prefix_caching: prompts that begin with the same tokens share their pages.
            enable_prompt_logprobs: False spares the programs for prompt log-probabilities.
            tensor_parallel_size: devices over which each layer is laid.
            mesh: devices and their axes, instead of ``tensor_parallel_size``.
            seed: draws the seeds of requests that have none, and random weights.
            load_format: "auto", or "dummy" for random weights.
            prefill_tokens: sizes of the compiled prefill programs; None chooses some.
            decode_steps: how many decode steps one call may take while nobody waits.
            max_waiting_requests, max_waiting_tokens: how many requests, and tokens of their
                prompts, may wait before another is refused; None is endless.
            request_limits: what one request may ask for at most; None is their defaults.
            progress: called with the phase (``load``, ``compile``), parts done and parts in all;
                for the two from different threads.

        Raises:
            ModelNotFound, CheckpointError, ConfigError, TokenizerError: what is wrong with the
                model.
            InvalidParameter: a parameter out of its range.
            CapacityError: the memory does not hold it.
            Unsupported: any ``quantization``.
        """
        if quantization is not None:
            raise Unsupported(
                f"quantization = {quantization!r}: weights are not quantised while they are "
                "loaded; a GGUF file may hold them so, and is unpacked"
            )
        verify_settings(
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            page_size=page_size,
            num_pages=num_pages,
            memory_utilization=memory_utilization,
            seed=seed,
            prefill_tokens=prefill_tokens,
            decode_steps=decode_steps,
            max_waiting_requests=max_waiting_requests,
            max_waiting_tokens=max_waiting_tokens,
        )
        mesh = _mesh(mesh, tensor_parallel_size)
        verify_page_size(page_size)
        room = usable_memory(mesh, memory_utilization)
        keep_compiled_programs()
        clock = StartupClock()
        with clock.phase("open"):
            opened = open_model(
                model,
                tokenizer=tokenizer,
                skip_tokenizer=skip_tokenizer_init,
                load_format=load_format,
            )
        with closing(opened), exhaustion_is_capacity_error():
            _require_even_heads(opened.config, mesh)
            blank = opened.blank(
                mesh=mesh, dtype=dtype, max_len=_max_len(max_model_len, opened), room=room
            )
            builder = EngineBuilder(
                blank,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                prefill_tokens=prefill_tokens,
                page_size=page_size,
                num_pages=num_pages,
                kv_cache_dtype=kv_cache_dtype,
                memory_utilization=memory_utilization,
                enable_prefix_caching=enable_prefix_caching,
                decode_steps=decode_steps,
                prompt_logprobs=enable_prompt_logprobs,
                max_waiting_requests=max_waiting_requests,
                max_waiting_tokens=max_waiting_tokens,
                request_limits=request_limits,
                releases_weights=True,
            )

            def load(report: Progress) -> Model:
                with clock.phase("load"):
                    weights = opened.load(blank, seed=seed, progress=report)
                    laid_out = builder.lay_out(weights, release=True)
                    jax.block_until_ready(laid_out.params)
                return laid_out

            with Background(load, partial(progress, "load")) as loading:
                with clock.phase("compile"):
                    programs = builder.compile(loading.watched(partial(progress, "compile")))
                loaded = loading.result()
            with clock.phase("warm"):
                self.engine = builder.engine(programs, loaded, opened.tokenizer, seed=seed)
        self.budget = programs.budget
        self.config = blank.config
        self.mesh = mesh
        self.platform = platform_of(mesh)
        self.dtype = jnp.dtype(blank.dtype).name
        self.kv_cache_dtype = self.dtype if kv_cache_dtype == "auto" else kv_cache_dtype
        self.max_model_len = blank.max_len
        # Of the checkpoint: the engine may hold some weights in a second form besides.
        self.weight_bytes = blank.device_weight_bytes
        self.num_active_params = blank.num_active_params
        self.startup_seconds = clock.seconds
        self.tokenizer = opened.tokenizer
        self.has_prompt_logprobs = enable_prompt_logprobs
        self._numbers = itertools.count()
        self._compiles = CompileCounter()
        self._profiler = Profiler()
        self._weights = ModelWeights(
            self.engine,
            builder,
            blank,
            source=model,
            load_format=load_format,
            seed=seed,
            finish=self._finished,
        )

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Generates for all prompts; the outputs are in their order.

        An interrupt aborts what has not ended, and the LLM can be used again.

        Args:
            prompts: a text, ``{"prompt_token_ids": [...]}``, or a list of such.
            sampling_params: for all prompts, or one a prompt; None is the defaults.
            use_tqdm: a bar on standard error.

        Raises:
            InvalidPrompt, InvalidParameter, CapacityError: one of them cannot be served; then none
                was begun.
            StepFailed: the device failed.
        """
        return self._finish(self.stream(prompts, sampling_params), use_tqdm)

    def stream(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> RequestStream:
        """The same, to be iterated over for events as they happen.

        A stream left early must be closed, as by ``with llm.stream(prompts) as stream``.
        """
        return self._submit(read_prompts(prompts, self.tokenizer), sampling_params)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **template: Any,
    ) -> list[RequestOutput]:
        """The assistant's next turn in one conversation, or in each of a list of them.

        Args:
            messages: ``{"role": ..., "content": ...}``, oldest first.
            template: ``chat_template``, ``add_generation_prompt``, and what else the template is
                to see, such as ``tools``.

        Raises:
            ChatTemplateError: no chat template, or one that fails on these messages.
            InvalidPrompt, InvalidParameter, CapacityError, StepFailed: as ``generate``.
        """
        return self._finish(self.stream_chat(messages, sampling_params, **template), use_tqdm)

    def stream_chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **template: Any,
    ) -> RequestStream:
        """The same, to be iterated over for events as they happen."""
        tokenizer = self.get_tokenizer()
        texts = [
            tokenizer.apply_chat_template(
                conversation, template_limits=self.engine.runner.limits.request, **template
            )
            for conversation in read_conversations(messages)
        ]
        prompts = [
            # The template has put the special tokens where they belong.
            Prompt(text=text, token_ids=encode(text, tokenizer, add_special_tokens=False))
            for text in texts
        ]
        return self._submit(prompts, sampling_params)

    def score(self, texts: Scorable | Sequence[Scorable], use_tqdm: bool = True) -> list[Score]:
        """How likely the model finds texts: all tokens of each but the first, or a continuation.

        Args:
            texts: prompts as ``generate`` takes them, or pairs ``(context, continuation)``, of
                which the continuation is scored; a list for several. Two strings are tokenized
                together, and the continuation begins with the first token that the context alone
                does not have.

        Raises:
            InvalidPrompt: nothing to score, or longer than the context.
            StepFailed: the device failed.
        """
        scored = read_scorables(texts, self.tokenizer)
        stream = self._submit([text.prompt for text in scored], SCORING)
        outputs = self._finish(stream, use_tqdm)
        return [score_of(text, output) for text, output in zip(scored, outputs, strict=True)]

    @property
    def num_compiles(self) -> int:
        """Programs that this process has compiled since the LLM was made; it asks for none."""
        return self._compiles.count

    def update_weights(self, path: str | Path, *, timeout: float | None = None) -> None:
        """Takes the weights of another checkpoint of the same architecture, without compiling.

        Requests that were begun end with the old weights; others wait meanwhile and get the new
        ones. The prefix cache is forgotten. For errors, and what happens with ``timeout``, see
        ``ModelWeights.update``.
        """
        self._weights.update(path, timeout=timeout)

    def sleep(self, level: int = 1, *, timeout: float | None = None) -> None:
        """Frees the device's memory, once all requests have ended, until ``wake_up``.

        Level 1 keeps the weights in the host's memory, level 2 reads them again to wake. For errors
        see ``ModelWeights.sleep``; requests raise ``Asleep`` meanwhile.
        """
        self._weights.sleep(level, timeout=timeout)

    def wake_up(self) -> None:
        """Serves again after ``sleep``; awake, it does nothing."""
        self._weights.wake()

    @property
    def is_asleep(self) -> bool:
        """Between ``sleep`` and ``wake_up``."""
        return self.engine.is_asleep

    def reset_prefix_cache(self) -> None:
        """No prompt finds anything that was cached before."""
        self.engine.forget_prefixes()

    def start_profile(self, directory: str | Path) -> None:
        """Begins a profile of device and host, to be looked at with XProf or Perfetto.

        Raises:
            Unsupported: one is being taken.
        """
        self._profiler.start(Path(directory))

    def stop_profile(self) -> Path:
        """Ends it; returns the directory that it was written into.

        Raises:
            Unsupported: none is being taken.
        """
        return self._profiler.stop()

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer of its prompts.

        Raises:
            InvalidParameter: it was made without.
        """
        if self.tokenizer is None:
            raise InvalidParameter("this LLM was made without a tokenizer: give it tokenizer=")
        return self.tokenizer

    def shutdown(self) -> None:
        """Ends what is in flight and takes nothing more; a second call does nothing."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    def _submit(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> RequestStream:
        params = params_for_each(sampling_params, len(prompts))
        if not self.has_prompt_logprobs and any(p.prompt_logprobs is not None for p in params):
            raise Unsupported(
                "prompt log-probabilities: this LLM was made with enable_prompt_logprobs=False"
            )
        request_ids = [str(number) for number in itertools.islice(self._numbers, len(prompts))]
        return RequestStream(self.engine, self._step, prompts, params, request_ids)

    def _finished(self, future: Future) -> Any:
        """What the engine has made of something that it was asked for."""
        while not self.engine.has_thread and not future.done():
            self._step()
        return future.result()

    def _step(self) -> None:
        with interrupts_held():
            self.engine.step()

    def _finish(self, stream: RequestStream, use_tqdm: bool) -> list[RequestOutput]:
        """Everything that a stream brings, in full."""
        total = len(stream.request_ids)
        with stream, tqdm(total=total, unit="prompt", disable=not use_tqdm) as bar:
            for event in stream:
                if event.failure is not None:
                    raise event.failure
                bar.update(stream.num_finished - bar.n)
        return stream.outputs


def _mesh(mesh: Mesh | None, tensor_parallel_size: int) -> Mesh:
    if mesh is not None:
        if tensor_parallel_size != 1:
            raise InvalidParameter("give either mesh or tensor_parallel_size, not both")
        if not isinstance(mesh, Mesh):
            raise InvalidParameter(
                f"mesh = {mesh!r:.100} is not allowed: it must be a jax.sharding.Mesh; "
                "tensor_parallel_size makes one"
            )
        return mesh
    try:
        return make_mesh({"model": tensor_parallel_size})
    except ValueError as error:
        raise InvalidParameter(
            f"tensor_parallel_size = {tensor_parallel_size} is not allowed: {error}"
        ) from error


def _require_even_heads(config: ModelConfig, mesh: Mesh) -> None:
    """Each device along ``model`` holds as many heads, and their pages, as its neighbour."""
    size = mesh.shape.get("model", 1)
    for layer in config.layers:
        if layer.mixer.split_heads % size:
            name = "num_heads" if layer.mixer.cache_kind == "latent" else "num_kv_heads"
            raise InvalidParameter(
                f"{size} devices cannot share {name} = {layer.mixer.split_heads} evenly: "
                "take a tensor_parallel_size that divides it"
            )


def _max_len(max_model_len: int | None, opened: OpenModel) -> int:
    if max_model_len is None:
        return min(opened.config.max_len, DEFAULT_MAX_MODEL_LEN)
    return max_model_len
