"""What the clock is made of: fitted constants, what kernels reach, and facts about a system.

The few fitted constants are in `Fit`, each with the published rows that it was fitted on (docs/plan.md); the
rest are data sheets, papers and counts.
"""

from dataclasses import dataclass

from hasten.plan.memory import FULL, HALF


@dataclass(frozen=True)
class Fit:
    """The constants that were fitted, and nothing else was."""

    # Share of the peak of large matrix products, by family and precision.
    ampere: float = 0.734  # Megatron-LM 2021, table 1 (ten rows)
    hopper: float = 0.491  # Megatron-Core r0.8 without a pipeline (four rows)
    hopper_fp8: float = 0.582  # Megatron-Bridge 25.09 and 25.11, dense, H100 (six rows)
    blackwell: float = 0.472  # the same, GB200 and B200 (18 rows), of fp8; taken for every precision
    blackwell_ultra: float = 0.584  # the same, GB300 (four rows)
    network: float = 0.624  # share of a network card's sheet: ZeRO-3 in Megatron-LM 2021, table 2 (six rows)

    def products(self, family: str, narrow: bool) -> float:
        """Share of the peak; Ada is taken as Ampere, of which no row is published."""
        if family == "hopper":
            return self.hopper_fp8 if narrow else self.hopper
        return self.ampere if family == "ada" else float(getattr(self, family))


FIT = Fit()
HBM_SHARE = 0.85  # of the sheet, that long streams reach
BACKWARD = 2.0  # products of a backward pass, per product of the forward
# Of attention: the fused one makes the scores again, five products for two, at 0.87 of the forward's rate
# (Shah et al. 2024, figures 5 and 6, H100, heads of 128, 16k, not causal: FlashAttention-2 reaches 370
# TFLOP/s and back 322, FlashAttention-3 648 and 561, cuDNN 595 and 516).
FUSED_BACKWARD, PLAIN_BACKWARD = 2.5 / 0.87, 2.0
UNCUT = 1.10  # the rate of blocks that no diagonal cuts, per that of a causal square: 370 and 335 there
# Bytes of memory-bound passes, forward; the backward's are twice that.
FUSED_PASSES, PLAIN_PASSES = 1.0, 2.5  # of what a layer keeps: compiled, and one kernel an operation
SCORE_BYTES = (
    13  # per score of an unfused attention: written, masked softmax, dropout, read (Megatron-LM 2021)
)
LOGIT_PASSES = 3  # over logits in six bytes: forward, softmax, gradient
LAUNCH = 5e-6  # seconds from one kernel's start to the next where the processor cannot keep up
KERNELS, KERNELS_BACK = 15, 30  # of a compiled layer; with one kernel an operation PLAIN_PASSES times as many
# Of a ring in PyTorch, bytes over memory per number of the queries, counted in its source
# (torch/distributed/tensor/experimental/_attention.py).  Forward, for each part but the first: its output
# cast to float32 (6) and joined by three operations (32), in half of the steps on half of the queries and
# copied together again (27 in all); keys and values packed to travel (8).  Backward, for each part: gradients
# of queries, keys and values added to sums in float32 (12 each) and packed (16), keys and values packed (7).
RING_PASSES, RING_PASSES_BACK = 40, 58
CAST_BYTES = (
    6  # per input of an 8-bit product: read twice (its maximum, then itself), written as is and turned
)
COPY_BYTES = 14  # per weight and micro-batch of FSDP2: out of the buffer that was gathered into, forward and
# backward (read and written in two bytes), and gradients into the one that is reduced (two and four)
NARROW = ("fp8", "fp4")


# Share of the bf16 peak that fused attention reaches.  First FlashAttention-2: Dao 2023, 190 of 312 TFLOP/s
# on A100; Shah et al. 2024, figure 5 (causal, heads of 128, 16k), 335 of 989 on H100; the same on Blackwell.
# Then cuDNN or FlashAttention-3: there 539 of 989; on Blackwell taken to reach as much of its peak.
ATTENTION = {
    "ampere": (0.60, 0.60),
    "ada": (0.60, 0.60),
    "hopper": (0.34, 0.55),
    "blackwell": (0.17, 0.55),
    "blackwell_ultra": (0.17, 0.55),
}


@dataclass(frozen=True)
class Software:
    """Facts about a system that change its time; the defaults are ours."""

    fused_attention: bool = True
    compiled: bool = True
    best_attention: bool = False  # FlashAttention-3 or cuDNN in place of FlashAttention-2
    products_again: float = 0.0  # share of the forward's products that selective recomputation makes again
    exchange: float = 0.8  # share of a link that point-to-point between stages reaches
    hide_exchange: bool = False  # behind the other chunks of an interleaved pipeline
    copies: bool = True  # FSDP2's copies, and 8-bit weights made again for every micro-batch
    rails: bool = True  # collectives that leave a node use all of its network cards
    overlap_data: bool = True  # gradients are exchanged during the last backward
    hidden_tensor: float = 0.0  # share of tensor-parallel exchange behind products
    gradient_bytes: float = FULL  # of a number on the wire
    power: float = 1.0  # of the peaks, where a card runs below its usual watts
    split_bytes: float = HALF  # of weights that FSDP gathers
    plain_ring: bool = True  # parts are joined by PyTorch's operations, keys' gradients travel in float32
    ring_repeats: bool = False  # keys and values are repeated for every query head before they go round


OWN = Software()
