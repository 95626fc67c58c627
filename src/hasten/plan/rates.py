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
    ampere: float = 0.680  # Megatron-LM 2021, table 1 (ten rows)
    hopper: float = 0.482  # Megatron-Core r0.8 without a pipeline (four rows)
    hopper_fp8: float = 0.550  # Megatron-Bridge 25.09 and 25.11, dense, H100 (six rows)
    blackwell: float = 0.452  # the same, GB200 and B200 (18 rows), of fp8; taken for every precision
    blackwell_ultra: float = 0.555  # the same, GB300 (four rows)
    passes: float = 0.823  # memory-bound passes over what the formulas count: all of those rows
    network: float = 0.632  # share of a network card's sheet: ZeRO-3 in Megatron-LM 2021, table 2 (six rows)

    def products(self, family: str, narrow: bool) -> float:
        """Share of the peak; Ada is taken as Ampere, of which no row is published."""
        if family == "hopper":
            return self.hopper_fp8 if narrow else self.hopper
        return self.ampere if family == "ada" else float(getattr(self, family))


FIT = Fit()
HBM_SHARE = 0.85  # of the sheet, that long streams reach
BACKWARD = 2.0  # products of a backward pass, per product of the forward
FUSED_BACKWARD, PLAIN_BACKWARD = 2.5, 2.0  # of attention: the fused one makes the scores again
# Bytes of memory-bound passes, forward; the backward's are twice that.
FUSED_PASSES, PLAIN_PASSES = 1.0, 2.5  # of what a layer keeps: compiled, and one kernel an operation
SCORE_BYTES = (
    13  # per score of an unfused attention: written, masked softmax, dropout, read (Megatron-LM 2021)
)
LOGIT_PASSES = 3  # over logits in six bytes: forward, softmax, gradient
LAUNCH = 5e-6  # seconds from one kernel's start to the next where the processor cannot keep up
KERNELS, KERNELS_BACK = 15, 30  # of a compiled layer; with one kernel an operation PLAIN_PASSES times as many
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


OWN = Software()
