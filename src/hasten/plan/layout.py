"""How a training is spread over devices: the degree of each axis, as data."""

from dataclasses import asdict, dataclass
from typing import Any

from hasten.core.errors import ConfigError
from hasten.parallel.config import Order, Recompute, Stage
from hasten.plan.work import Work


@dataclass(frozen=True, slots=True)
class Layout:
    """Degrees of parallelism.  Their product is the number of devices.

    Rows are divided over `data` x `shard` replicas.  `shard` of them share one copy of the optimizer
    (`stage` 1), of the gradients too (2), or of the weights too (3: FSDP).  `tensor` splits matrices,
    `pipeline` layers (`interleave` groups of them a device), `context` the tokens of a row.
    """

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    interleave: int = 1
    micro_batch: int = 1  # rows of one forward pass of a replica
    sequence_parallel: bool = False  # norms and residuals are split over `tensor` as well
    recompute: Recompute = "none"  # selective: the attention's scores; full: all but each layer's input
    stage: Stage = 3
    order: Order = "1f1b"  # in which a pipeline takes forward and backward; interleaved where interleave > 1

    def __post_init__(self) -> None:
        degrees = ("data", "shard", "tensor", "pipeline", "context", "interleave", "micro_batch")
        for name in degrees:
            if getattr(self, name) < 1:
                raise ConfigError(f"layout.{name} is {getattr(self, name)}; write 1 or more")
        if self.interleave > 1 and self.pipeline == 1:
            raise ConfigError(
                f"layout.interleave is {self.interleave} without a pipeline; write layout.pipeline=2 or more"
            )

    @property
    def replicas(self) -> int:
        """How many parts the rows of a step are divided in."""
        return self.data * self.shard

    @property
    def devices(self) -> int:
        """How many devices the layout takes."""
        return self.replicas * self.tensor * self.pipeline * self.context

    @property
    def axes(self) -> int:
        """How many axes beside the replicas are in use."""
        return sum(n > 1 for n in (self.tensor, self.pipeline, self.context, self.interleave))

    @property
    def chunks(self) -> int:
        """Groups of consecutive layers over all stages."""
        return self.pipeline * self.interleave

    def micro_batches(self, rows: int) -> int:
        """Forward passes of a replica in a step of `rows` rows."""
        return rows // (self.replicas * self.micro_batch)

    def state(self) -> dict[str, Any]:
        """The degrees by name, for JSON and for a recipe's `parallel:`."""
        return asdict(self)

    def __str__(self) -> str:
        """`data 4, tensor 8, pipeline 2 x 3`; what is 1 is left out, and so is that weights are shared."""
        names = ("data", "shard", "tensor", "context", "pipeline")
        shared = {1: " (optimizer)", 2: " (optimizer, gradients)", 3: ""}
        parts = [
            f"{name} {getattr(self, name)}" + (shared[self.stage] if name == "shard" else "")
            for name in names
            if getattr(self, name) > 1
        ]
        if self.interleave > 1:
            parts[-1] += f" x {self.interleave}"
        return ", ".join(
            [*(parts or ["one device"]), f"rows {self.micro_batch}", f"recompute {self.recompute}"]
        )


def misfit(layout: Layout, work: Work, row_tokens: int, rows: int) -> str | None:
    """Why the model's shape or the batch cannot be divided so, None where it can."""
    tensor, context = layout.tensor, layout.context
    if work.heads % tensor:
        return f"tensor {tensor} does not divide {work.heads} heads"
    if work.kv_heads % tensor and tensor % work.kv_heads:
        return f"tensor {tensor} and {work.kv_heads} key/value heads do not divide each other"
    if work.ffn_dim % tensor:
        return f"tensor {tensor} does not divide a feed-forward of {work.ffn_dim:,}"
    if context > 1 and row_tokens % (2 * context):
        return f"twice context {context} does not divide rows of {row_tokens:,} tokens"
    if layout.sequence_parallel and row_tokens // context % tensor:
        return f"tensor {tensor} does not divide {row_tokens // context:,} tokens for sequence parallelism"
    if layout.chunks > work.layers:
        return f"pipeline {layout.pipeline} x {layout.interleave} is more than {work.layers} layers"
    return batch_misfit(layout, rows)


def batch_misfit(layout: Layout, rows: int) -> str | None:
    """Why the rows of a step cannot be divided so, None where they can."""
    if rows % (layout.replicas * layout.micro_batch):
        return (
            f"{layout.replicas} replicas x {layout.micro_batch} rows do not divide a batch of {rows:,} rows"
        )
    if layout.interleave > 1 and layout.micro_batches(rows) % layout.pipeline:
        return (
            f"an interleaved pipeline of {layout.pipeline} does not divide"
            f" {layout.micro_batches(rows)} micro-batches"
        )
    return None
