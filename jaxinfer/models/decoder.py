"""The one decoder: embed, blocks, head. What it is made of stands in its ``ModelConfig``."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinfer.batch import Ragged
from jaxinfer.cache import Cache, Pages, group_of_layer
from jaxinfer.config import ModelConfig
from jaxinfer.layers.altup import AltUpEnds
from jaxinfer.layers.block import Block
from jaxinfer.layers.embedding import Embedding
from jaxinfer.layers.layer_input import LayerInputs
from jaxinfer.layers.linear import Linear
from jaxinfer.layers.norm import Norm
from jaxinfer.layers.parameter import KeySource
from jaxinfer.ops.linear import tied_head
from jaxinfer.ops.packed import LiveRows, for_live_rows
from jaxinfer.ops.query_scale import query_scale
from jaxinfer.ops.rope import RopeTable, rope_table
from sharding import DEFAULT_RULES


class Decoder(nnx.Module):
    """A stack of blocks over a residual stream, or over several (AltUp).

    ``max_len``: the longest context this instance serves; it settles the RoPE scalings that depend
    on length. Calling it gives hidden states; ``logits`` turns chosen ones into logits, so that a
    prefill never makes logits for tokens nobody samples from.
    """

    def __init__(
        self, config: ModelConfig, *, dtype: jnp.dtype, max_len: int, mesh: Mesh, rngs: KeySource
    ):
        width = config.width
        self.config, self.max_len, self.mesh = config, max_len, mesh
        self.embed = Embedding(config.vocab_size, width, dtype, "vocab", rngs=rngs)
        self.positions = (
            Embedding(config.learned_positions, width, dtype, None, rngs=rngs)
            if config.learned_positions is not None
            else None
        )
        self.layer_inputs = (
            LayerInputs(config.layer_input, len(config.layers), width, dtype, rngs=rngs)
            if config.layer_input is not None
            else None
        )
        self.altup = (
            AltUpEnds(config.altup, width, dtype, rngs=rngs) if config.altup is not None else None
        )
        self.layers = nnx.List(
            Block(spec, width, dtype, altup=config.altup, layer_input=config.layer_input, rngs=rngs)
            for spec in config.layers
        )
        self.final_norm = Norm(config.final_norm, width, dtype, rngs=rngs)
        head_axes, head_bias = ("embed", "vocab"), config.head_bias
        self.head = (
            None
            if config.tied_head
            else Linear(width, config.vocab_size, dtype, head_axes, bias=head_bias, rngs=rngs)
        )

    def __call__(
        self,
        tokens_T: jax.Array,
        positions_T: jax.Array,
        cache: Cache,
        page_tables: tuple[jax.Array, ...],
        ragged: Ragged,
    ) -> tuple[jax.Array, Cache]:
        """Final hidden states ``[T, D]`` (normed) and the cache with this step's tokens in it.

        ``page_tables``: int32 ``[S, M]``, one for each of ``cache.layer_groups(config)``.
        """
        config = self.config
        ropes = {spec: rope_table(spec, self.max_len, positions_T) for spec in config.ropes}
        temperatures = config.query_temperatures
        query_scales = {spec: query_scale(spec, positions_T) for spec in temperatures}
        x = x_TD = self._embed(tokens_T, positions_T)
        inputs_TLI = None if self.layer_inputs is None else self.layer_inputs(tokens_T, x_TD)
        if self.altup is not None:
            x = self.altup.spread(x_TD)
        pools = list(cache)
        groups = group_of_layer(config)
        # Of a step's tokens, what comes after the last row is padding.
        num_tokens = ragged.cu_q_lens_S1[-1]
        live = None if ragged.is_decode else LiveRows(num_tokens, tokens_T.size)
        for i, (block, spec, group) in enumerate(
            zip(self.layers, config.layers, groups, strict=True)
        ):
            owner = config.kv_owner(i)
            pages = pools[owner]
            assert pages is not None
            rope = None if spec.mixer.rope is None else ropes[spec.mixer.rope]
            temperature = spec.mixer.query_temperature
            query_scale_T = None if temperature is None else query_scales[temperature]
            input_TI = None if inputs_TLI is None else inputs_TLI[:, i]
            graph, params = nnx.split(block)
            if live is not None:
                params = for_live_rows(params, live)
            x, pools[owner] = _run_block(
                graph,
                params,
                x,
                rope,
                query_scale_T,
                pages,
                page_tables[group],
                ragged,
                input_TI,
                mesh=self.mesh,
            )
        x_TD = x if self.altup is None else self.altup.merge(x)
        return self.final_norm(x_TD), tuple(pools)

    def logits(self, hidden_RD: jax.Array) -> jax.Array:
        """Float32 logits ``[R, V]`` of final hidden states ``[R, D]``."""
        config = self.config
        with jax.named_scope("head"):
            if self.head is None:
                logits_RV = tied_head(hidden_RD, self.embed.embedding.get_value())
            else:
                logits_RV = self.head(hidden_RD)
            if self.mesh.size > 1:
                # Sampling looks at whole rows, on every device alike. First as they come out of
                # the product: asked for whole rows only, XLA:TPU gathers the weights instead.
                for columns in (DEFAULT_RULES["vocab"], None):
                    where = NamedSharding(self.mesh, PartitionSpec(None, columns))
                    logits_RV = jax.lax.with_sharding_constraint(logits_RV, where)
            logits_RV = logits_RV * jnp.float32(config.logit_scale)
            if config.logit_softcap is not None:
                cap = jnp.float32(config.logit_softcap)
                logits_RV = cap * jnp.tanh(logits_RV / cap)
            return logits_RV

    def _embed(self, tokens_T: jax.Array, positions_T: jax.Array) -> jax.Array:
        with jax.named_scope("embed"):
            x_TD = self.embed(tokens_T)
            if self.config.embed_scale != 1.0:
                # Rounded to the model's dtype first, as the models that scale were trained.
                x_TD = x_TD * jnp.asarray(self.config.embed_scale, x_TD.dtype)
            return x_TD if self.positions is None else x_TD + self.positions(positions_T)


@functools.partial(jax.jit, static_argnames=("graph", "mesh"))
def _run_block(
    graph: nnx.GraphDef,
    params: nnx.State,
    x: jax.Array,
    rope: RopeTable | None,
    query_scale_T: jax.Array | None,
    pages: Pages,
    page_table_SM: jax.Array,
    ragged: Ragged,
    input_TI: jax.Array | None,
    *,
    mesh: Mesh,
) -> tuple[jax.Array, Pages]:
    """One block. A jit of its own, so that layers with equal specs are traced and lowered once."""
    block: Block = nnx.merge(graph, params)
    return block(x, rope, query_scale_T, pages, page_table_SM, ragged, mesh, input_TI)
