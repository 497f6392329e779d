"""Named shapes, shared by the tests and the bench: what one device of a mesh computes."""

from dataclasses import dataclass

from pallas_kernels.paging.specs import PagedSpec


@dataclass(frozen=True, kw_only=True)
class Spec(PagedSpec):
    """One call: the heads of a device, which share one latent a position, and a batch."""

    num_heads: int
    latent_rank: int = 512
    rope_dim: int = 64
    max_len: int = 8192
    logit_dim: int = 192
    """The head dim before absorption (128 without rotation, 64 with), which sets the scale."""

    @property
    def scale(self) -> float:
        return self.logit_dim**-0.5

    @property
    def flops(self) -> int:
        """Floating point operations of the two products of one layer, masked positions left out."""
        seen = int(sum(seen.sum() for seen in self.seen))
        return 2 * self.num_heads * (2 * self.latent_rank + self.rope_dim) * seen

    def latent_bytes(self, itemsize: int) -> int:
        """Bytes of the latents and rotary parts that one layer must read once."""
        positions = sum(length for _, length in self.rows)
        return positions * (self.latent_rank + self.rope_dim) * itemsize


def _decode(count: int, lo: int, hi: int) -> tuple[tuple[int, int], ...]:
    """``count`` rows of one token with lengths spread evenly over ``lo..hi``, in a mixed order."""
    return tuple((1, lo + (397 * i) % (hi - lo + 1)) for i in range(count))


SPECS = {
    # DeepSeek-V3 and R1: 128 heads, of which a device has all (data parallel) or an eighth.
    "deepseek-v3-decode": Spec(num_heads=128, rows=_decode(32, 3000, 4600), layers=4),
    "deepseek-v3-decode-tp8": Spec(num_heads=16, rows=_decode(64, 3000, 4600), layers=4),
    "deepseek-v3-prefill": Spec(num_heads=128, rows=((1024, 1024), (1024, 3072)), layers=2),
    "deepseek-v3-prefill-tp8": Spec(num_heads=16, rows=((2048, 2048), (2048, 6144)), layers=2),
    # Two speculative tokens a row besides the sure one.
    "deepseek-v3-verify": Spec(
        num_heads=128, rows=tuple((3, n + 2) for _, n in _decode(16, 1000, 2000)), layers=4
    ),
    "deepseek-v2-lite-decode": Spec(num_heads=16, rows=_decode(16, 200, 1000), layers=27),
    "deepseek-v2-lite-prefill": Spec(num_heads=16, rows=((512, 512),) * 4, layers=27),
    "deepseek-v2-lite-mixed": Spec(
        num_heads=16,
        rows=(*_decode(24, 200, 1000), (256, 256), (200, 700), (1, 90)),
        num_slots=32,
        num_tokens=512,
        max_len=2048,
        layers=27,
    ),
}
