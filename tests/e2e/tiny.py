"""Two tiny random models in float32, and the plain loop that every engine run is compared with.

Shapes are few and shared, because each is a compilation. Unused pages hold NaN throughout: whatever
reads one of them shows. Greedy tokens are compared only where the best two logits are apart, so
that rounding, which batching may change, cannot decide: the oracle asserts it at every token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.cache import layer_groups
from jaxinfer.config import (
    AltUpSpec,
    AttentionSpec,
    LaurelSpec,
    LayerInputSpec,
    LayerSpec,
    MlpSpec,
    ModelConfig,
    MoeSpec,
    NormSpec,
    RopeSpec,
)
from jaxinfer.decoding.autoregressive import SlotLogits, StepOutput
from jaxinfer.decoding.programs import ProgramShapes, ProgramTable
from jaxinfer.decoding.slots import SlotState
from jaxinfer.engine.build import build_engine
from jaxinfer.engine.engine import Engine
from jaxinfer.engine.request import Request
from jaxinfer.generate import generate
from jaxinfer.models.loading import dummy_model
from jaxinfer.models.model import Model
from jaxinfer.outputs import TokenEvent
from jaxinfer.sampling import slot_sampling
from jaxinfer.sampling_params import SamplingParams
from pallas_kernels import fill_kv_pages
from sharding import make_mesh

VOCAB, MAX_LEN, PAGE = 96, 64, 8
EOS = 7
# Rounding in float32 moves these logits by less than 1e-5.
SMALLEST_GAP = 1e-4


def tiny_config(
    windows: Sequence[int | None],
    mlps: Sequence[MlpSpec | MoeSpec] | None = None,
    owners: Sequence[int | None] | None = None,
    **mixer: bool,
) -> ModelConfig:
    """One layer a window, with the MLP beside it; two kv heads under four query heads.

    With ``owners``, whose keys and values each layer reads, it is a model with several streams and
    inputs of its layers as well. ``mixer``: further fields of the attention.
    """
    norm = NormSpec(eps=1e-5)
    rope = RopeSpec(theta=10_000.0, rotary_dim=16)
    attention = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=16, rope=rope, **mixer)
    layers = tuple(
        LayerSpec(
            mixer=replace(attention, window=window),
            mlp=mlp,
            pre_norm=norm,
            kv_from=owner,
            laurel=LaurelSpec(rank=8, norm=norm) if owners else None,
        )
        for window, mlp, owner in zip(
            windows,
            mlps or [MlpSpec(width=64)] * len(windows),
            owners or [None] * len(windows),
            strict=True,
        )
    )
    inputs = LayerInputSpec(
        width=8, vocab_size=VOCAB, activation="gelu_tanh", norm=norm, post_norm=norm
    )
    return ModelConfig(
        model_type="llama",
        vocab_size=VOCAB,
        width=32,
        max_len=MAX_LEN,
        layers=layers,
        final_norm=norm,
        tied_head=False,
        altup=AltUpSpec(num_streams=3, norm=norm) if owners else None,
        layer_input=inputs if owners else None,
        dtype="float32",
        eos_token_ids=(EOS,),
    )


def tiny_model(
    windows: Sequence[int | None],
    devices: int = 1,
    mlps: Sequence[MlpSpec | MoeSpec] | None = None,
    owners: Sequence[int | None] | None = None,
    **mixer: bool,
) -> Model:
    return model_of(tiny_config(windows, mlps, owners, **mixer), devices)


def model_of(config: ModelConfig, devices: int = 1) -> Model:
    """Weights large enough that the best two logits are apart, the same on every mesh."""
    model = dummy_model(config, mesh=make_mesh({"model": devices}), seed=3)
    return replace(model, params=jax.tree.map(lambda leaf: leaf * jnp.float32(1.5), model.params))


class OracleTable(ProgramTable):
    """The plain loop's programs; remembers the logits ``[V]`` of each token that slot 0 sampled."""

    logits_V: list[np.ndarray]

    def __getitem__(self, name: str) -> Callable:
        program = super().__getitem__(name)
        return partial(self._sample, program) if name == "sample" else program

    def _sample(
        self, program: Callable, state: SlotState, logits: SlotLogits, mask_SW: jax.Array
    ) -> tuple[SlotState, StepOutput]:
        self.logits_V.append(np.asarray(logits.logits_SV[0]))
        return program(state, logits, mask_SW)


@dataclass(frozen=True)
class House:
    """A model, its oracle, and engines of it."""

    model: Model
    oracle: OracleTable

    def engine(self, **options: object) -> Engine:
        settings: dict = {
            "max_num_seqs": 4,
            "max_num_batched_tokens": 16,
            "prefill_tokens": (16,),
            "page_size": PAGE,
            "num_pages": 40,
        } | options
        engine = build_engine(self.model, None, **settings)
        poison(engine)
        return engine

    def expected(self, prompt: Sequence[int], params: SamplingParams, index: int = 0) -> list[int]:
        """What the plain loop says; greedy tokens only where no other was close."""
        row = slot_sampling(
            params,
            sample_index=index,
            vocab_size=VOCAB,
            eos_token_ids=(EOS,),
            max_tokens=min(params.max_tokens or MAX_LEN, MAX_LEN - len(prompt)),
        )
        self.oracle.logits_V = []
        tokens = list(generate(self.oracle, prompt, row))
        assert len(self.oracle.logits_V) == len(tokens)
        if params.temperature == 0:
            for count, logits_V in enumerate(self.oracle.logits_V):
                assert_clear_choice(logits_V, params, prompt, tokens[:count])
        return tokens


def assert_clear_choice(
    logits_V: np.ndarray, params: SamplingParams, prompt: Sequence[int], tokens: Sequence[int]
) -> None:
    """Asserts that the best two logits are apart once penalties for earlier tokens are taken."""
    for name in ("logit_bias", "presence_penalty", "allowed_token_ids", "min_tokens", "bad_words"):
        assert not getattr(params, name), f"{name} is not reckoned with here"
    seen_V = np.bincount([*prompt, *tokens], minlength=VOCAB) > 0
    repeated_V = np.where(
        logits_V > 0, logits_V / params.repetition_penalty, logits_V * params.repetition_penalty
    )
    logits_V = np.where(seen_V, repeated_V, logits_V)
    logits_V = logits_V - params.frequency_penalty * np.bincount(
        np.asarray(tokens, np.int64), minlength=VOCAB
    )
    second, best = np.sort(logits_V)[-2:]
    assert best - second > SMALLEST_GAP, f"after {list(tokens)}: choose other prompts"


def poison(engine: Engine) -> None:
    """Fills every page with NaN, as memory that nobody wrote may be."""
    runner = engine.runner
    fill = jax.jit(
        lambda pages: fill_kv_pages(pages, jnp.arange(pages.num_pages), float("nan")),
        donate_argnums=0,
    )
    runner._cache = tuple(pages and fill(pages) for pages in runner._cache)


def serve(engine: Engine, requests: Sequence[Request]) -> list[TokenEvent]:
    """Serves requests to their end: all that was said of them."""
    events: list[TokenEvent] = []
    for request in requests:
        engine.submit(request, events.extend)
    while engine.step():
        pass
    return events


def run(engine: Engine, requests: Sequence[Request]) -> dict[str, list[list[int]]]:
    """Serves requests to their end: by id, the tokens of each output."""
    return tokens_of(serve(engine, requests), requests)


def tokens_of(
    events: Sequence[TokenEvent], requests: Sequence[Request]
) -> dict[str, list[list[int]]]:
    tokens = {r.request_id: [[] for _ in range(r.params.n)] for r in requests}
    for event in events:
        tokens[event.request_id][event.index].extend(event.token_ids)
    return tokens


def request(name: str, prompt: Sequence[int], **params: object) -> Request:
    return Request(request_id=name, prompt_token_ids=prompt, params=SamplingParams(**params))


def prompts(count: int, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Random prompts without the end-of-sequence token."""
    rng = np.random.default_rng(seed)
    return [rng.integers(8, VOCAB, lengths[i % len(lengths)]).tolist() for i in range(count)]


def house_of(
    windows: Sequence[int | None],
    mlps: Sequence[MlpSpec | MoeSpec] | None = None,
    owners: Sequence[int | None] | None = None,
    **mixer: bool,
) -> House:
    return house_of_model(tiny_model(windows, mlps=mlps, owners=owners, **mixer))


def house_of_model(model: Model) -> House:
    shapes = ProgramShapes(
        num_slots=2,
        pages_per_sequence=MAX_LEN // PAGE,
        page_size=PAGE,
        num_pages=(1 + MAX_LEN // PAGE,) * len(layer_groups(model.config)),
        kv_dtype="float32",
        prefill_tokens=(MAX_LEN,),
    )
    oracle = OracleTable(model, shapes)
    oracle.compile()
    return House(model, oracle)
