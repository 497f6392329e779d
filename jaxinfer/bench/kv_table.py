"""What keys and values cost by kind of attention, on one shape: the table of the main README.

    python -m jaxinfer.bench.kv_table

Every figure is the size of the arrays that the program allocates; nothing is allocated for it.
"""

from collections.abc import Sequence
from dataclasses import replace

from jaxinfer.config import (
    AttentionSpec,
    LatentSpec,
    LayerSpec,
    MlpSpec,
    ModelConfig,
    NormSpec,
    RopeSpec,
    shared_kv,
)
from jaxinfer.llm.kv_cost import group_facts, largest_batch, sequence_bytes

NUM_LAYERS, WIDTH, NUM_HEADS, HEAD_DIM = 32, 4096, 32, 128
DTYPE, PAGE_SIZE = "bfloat16", 64
CONTEXTS = (4096, 32_768, 131_072)
POOL_BYTES = 64 * 2**30


def layers(num_kv_heads: int) -> tuple[LayerSpec, ...]:
    """Layers that see every token, each with keys and values of its own."""
    norm = NormSpec()
    mixer = AttentionSpec(
        num_heads=NUM_HEADS,
        num_kv_heads=num_kv_heads,
        head_dim=HEAD_DIM,
        rope=RopeSpec(theta=1e4, rotary_dim=HEAD_DIM),
    )
    layer = LayerSpec(mixer=mixer, mlp=MlpSpec(width=4 * WIDTH), pre_norm=norm)
    return (layer,) * NUM_LAYERS


def latent_layers() -> tuple[LayerSpec, ...]:
    """Layers of as many heads that keep one latent a token, of the sizes of DeepSeek-V2 and V3."""
    norm = NormSpec()
    mixer = LatentSpec(
        num_heads=NUM_HEADS,
        kv_rank=512,
        nope_dim=HEAD_DIM,
        rope_dim=64,
        value_dim=HEAD_DIM,
        rope=RopeSpec(theta=1e4, rotary_dim=64, interleaved=True),
        latent_norm=norm,
    )
    layer = LayerSpec(mixer=mixer, mlp=MlpSpec(width=4 * WIDTH), pre_norm=norm)
    return (layer,) * NUM_LAYERS


def windowed(specs: Sequence[LayerSpec], window: int, period: int) -> tuple[LayerSpec, ...]:
    """The layers, all but each ``period``-th with a window."""
    return tuple(
        spec
        if (i + 1) % period == 0
        else replace(spec, mixer=replace(spec.attention, window=window))
        for i, spec in enumerate(specs)
    )


#: A line each.
ROWS: dict[str, tuple[LayerSpec, ...]] = {
    "MHA: 32 kv heads": layers(32),
    "GQA: 8 kv heads": layers(8),
    "MQA: 1 kv head": layers(1),
    "MLA: a latent of 512 + 64": latent_layers(),
    "CLA2: MHA, two layers share": shared_kv(layers(32), 2),
    "CLA2: GQA, two layers share": shared_kv(layers(8), 2),
    "CLA3: GQA, three layers share": shared_kv(layers(8), 3),
    "CLA2: MQA, two layers share": shared_kv(layers(1), 2),
    "window of 4,096 in every second layer, GQA": windowed(layers(8), 4096, 2),
    "window of 1,024 in five of six layers, GQA": windowed(layers(8), 1024, 6),
}


def model(specs: tuple[LayerSpec, ...]) -> ModelConfig:
    """A decoder of these layers."""
    return ModelConfig(
        model_type="llama",
        vocab_size=32_000,
        width=WIDTH,
        max_len=max(CONTEXTS),
        layers=specs,
        final_norm=NormSpec(),
        tied_head=False,
        dtype=DTYPE,
    )


def table() -> list[str]:
    """The lines of a Markdown table."""
    columns = [f"MiB, {context:,} tokens" for context in CONTEXTS]
    batch = f"sequences of {CONTEXTS[1]:,} in {POOL_BYTES // 2**30} GiB"
    lines = [
        "| " + " | ".join(["attention", "bytes a token", *columns, batch]) + " |",
        "|" + "---|" * (len(columns) + 3),
    ]
    for name, specs in ROWS.items():
        config = model(specs)
        groups = group_facts(config, PAGE_SIZE, DTYPE)
        a_token = sum(group.kv_bytes_per_token for group in groups)
        sizes = [sequence_bytes(groups, PAGE_SIZE, context) / 2**20 for context in CONTEXTS]
        cells = [name, f"{a_token:,}", *(f"{size:,.0f}" for size in sizes)]
        cells.append(f"{largest_batch(config, groups, PAGE_SIZE, POOL_BYTES, CONTEXTS[1]):,}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
