"""Devices, links and clusters as data, and a parser of their names.

Peaks are dense (without sparsity), in FLOP/s; memory in bytes as the driver reports it, not as sold.
"""

import re
from dataclasses import dataclass, replace

from hasten.core.errors import ConfigError, did_you_mean

GB, TB, GIB, TFLOPS = 1e9, 1e12, 2**30, 1e12


@dataclass(frozen=True)
class Link:
    """A network as one device sees it: bytes/s one way, seconds before the first byte."""

    name: str
    bandwidth: float
    latency: float
    source: str


LINKS = {
    # Inside a node: the bus bandwidth that NCCL's tests measure, about 0.78 of the sheet.
    "nvlink3": Link("NVLink 3", 230 * GB, 8e-6, "300 GB/s one way (A100 data sheet); nccl-tests about 230"),
    "nvlink4": Link("NVLink 4", 370 * GB, 8e-6, "450 GB/s one way (H100 data sheet); nccl-tests about 370"),
    "nvlink5": Link("NVLink 5", 700 * GB, 8e-6, "900 GB/s one way (B200 data sheet), times 0.78 as above"),
    "pcie4": Link("PCIe 4.0 x16", 20 * GB, 15e-6, "31.5 GB/s one way, times 0.64 as copies reach"),
    "pcie5": Link("PCIe 5.0 x16", 40 * GB, 15e-6, "63 GB/s one way, times 0.64 as copies reach"),
    # Between nodes: each device's share of its node's cards, by the sheet; `time.Fit.network` is reached.
    "ib200": Link("InfiniBand HDR", 25 * GB, 20e-6, "200 Gb/s a device (DGX A100)"),
    "ib400": Link("InfiniBand NDR", 50 * GB, 20e-6, "400 Gb/s a device (DGX H100)"),
    "ib800": Link("InfiniBand XDR", 100 * GB, 20e-6, "800 Gb/s a device (DGX B300)"),
    "eth100": Link("Ethernet 100G", 12.5 * GB / 8, 40e-6, "100 Gb/s a node of eight"),
    "eth25": Link("Ethernet 25G", 3.1 * GB, 50e-6, "25 Gb/s a node"),
    "eth10": Link("Ethernet 10G", 1.2 * GB, 60e-6, "10 Gb/s a node"),
    "eth1": Link("Ethernet 1G", 0.118 * GB, 100e-6, "1 Gb/s a node"),
}


@dataclass(frozen=True)
class Device:
    """An accelerator: peaks by precision, memory, and how it is usually connected."""

    name: str
    peaks: dict[str, float]
    memory: float
    bandwidth: float
    inside: str  # link between devices of a node
    across: str  # link between nodes
    node: int  # devices that `inside` connects
    watts: float
    price: float  # dollars per device-hour: an assumption of the order that clouds ask; give your own
    source: str
    family: str  # which fitted efficiencies it has

    def peak(self, precision: str) -> float:
        """FLOP/s in a precision, that of the next wider one where the device has none."""
        wider = {"fp4": "fp8", "fp8": "bf16"}
        while precision not in self.peaks and precision in wider:
            precision = wider[precision]
        if precision not in self.peaks:
            raise ConfigError(f"{self.name} has no {precision}; choose from {', '.join(self.peaks)}")
        return self.peaks[precision]


def device(  # noqa: PLR0917 - one line of a table
    name: str,
    peaks: tuple[float, ...],
    memory: float,
    bandwidth: float,
    links: tuple[str, str],
    node: int,
    watts: float,
    price: float,
    family: str,
    source: str,
) -> Device:
    """A device in the units of data sheets: TFLOP/s of bf16, fp8, fp4; GiB; TB/s; watts; dollars an hour."""
    by_name = {key: peak * TFLOPS for key, peak in zip(("bf16", "fp8", "fp4"), peaks, strict=False)}
    by_name["fp16"] = by_name["bf16"]
    return Device(name, by_name, memory * GIB, bandwidth * TB, *links, node, watts, price, source, family)


IN_A100, IN_H100, IN_B200 = ("nvlink3", "ib200"), ("nvlink4", "ib400"), ("nvlink5", "ib400")
IN_GB300 = ("nvlink5", "ib800")
NVL72 = "NVL72 data sheet, / 72; domains of 64 in use"
DEVICES = {
    each.name: each
    for each in (
        device("a100-40", (312,), 39.4, 1.555, IN_A100, 8, 400, 1.3, "ampere", "A100 data sheet, SXM4"),
        device("a100", (312,), 79.1, 2.039, IN_A100, 8, 400, 1.8, "ampere", "A100 data sheet, SXM4 80GB"),
        device("h100", (989, 1979), 79.1, 3.35, IN_H100, 8, 700, 3.0, "hopper", "H100 data sheet, SXM5"),
        device("h200", (989, 1979), 139.8, 4.8, IN_H100, 8, 700, 3.6, "hopper", "H200 data sheet, SXM"),
        device("b200", (2250, 4500, 9000), 178, 8.0, IN_B200, 8, 1000, 5.5, "blackwell", "DGX B200, / 8"),
        device("gb200", (2500, 5000, 10_000), 184, 8.0, IN_B200, 64, 1200, 6.5, "blackwell", NVL72),
        device("gb300", (2500, 5000, 15_000), 276, 8.0, IN_GB300, 64, 1400, 7.5, "blackwell_ultra", NVL72),
        device("l4", (121, 242), 22.0, 0.300, ("pcie4", "eth100"), 8, 72, 0.8, "ada", "L4 data sheet, dense"),
        device("a10", (125,), 22.0, 0.600, ("pcie4", "eth100"), 4, 150, 1.0, "ampere", "A10 data sheet"),
        device("4090", (165, 330), 23.6, 1.008, ("pcie4", "eth10"), 8, 450, 0.5, "ada", "Ada white paper"),
    )
}  # fmt: skip
ALIASES = {"a100-80": "a100", "rtx4090": "4090", "rtx-4090": "4090", "h100-80": "h100"}


@dataclass(frozen=True)
class Cluster:
    """`nodes` nodes of `per_node` equal devices."""

    device: Device
    per_node: int
    nodes: int = 1
    across: Link = LINKS["ib400"]

    @property
    def devices(self) -> int:
        return self.per_node * self.nodes

    @property
    def inside(self) -> Link:
        return LINKS[self.device.inside]

    @property
    def name(self) -> str:
        return f"{self.device.name}x{self.per_node}" + (f"x{self.nodes}" if self.nodes > 1 else "")

    def link(self, size: int, stride: int = 1, *, rails: bool = True) -> Link:
        """What `size` devices, `stride` ranks apart, exchange through.

        A group that leaves the node enters each node over the cards of all its members there (`rails`).
        """
        if size * stride <= self.per_node:
            return self.inside
        members = max(self.per_node // stride, 1) if rails else 1
        if members == 1:
            return self.across
        return replace(self.across, bandwidth=min(self.across.bandwidth * members, self.inside.bandwidth))


def parse_hardware(text: str, network: str | None = None) -> Cluster:
    """`h100x8x16`: 16 nodes of 8 H100; `a100`: one.  `network` names the link between nodes."""
    found = re.fullmatch(r"([a-z0-9-]+?)(?:x(\d{1,7}))?(?:x(\d{1,7}))?", text.strip().lower())
    if found is None:
        raise ConfigError(f"hardware '{text}' is not written DEVICE, DEVICExN or DEVICExNxNODES: h100x8x16")
    name = ALIASES.get(found[1], found[1])
    if name not in DEVICES:
        known = ", ".join(DEVICES)
        raise ConfigError(
            f"there is no device '{found[1]}'.{did_you_mean(name, DEVICES)} Choose from {known}"
        )
    chosen = DEVICES[name]
    many, nodes = int(found[2] or 1), int(found[3] or 1)
    if not many or not nodes:
        raise ConfigError(f"hardware '{text}' has no devices; write {name}x8 or {name}x8x2")
    if found[3] is None and many > chosen.node and many % chosen.node == 0:
        many, nodes = chosen.node, many // chosen.node  # h100x64 is eight nodes of eight
    if many > chosen.node:
        raise ConfigError(
            f"hardware '{text}': a node of {name} has at most {chosen.node}; write {name}x{chosen.node}xNODES"
        )
    if network is not None and network not in LINKS:
        raise ConfigError(
            f"there is no network '{network}'.{did_you_mean(network, LINKS)} Choose from {', '.join(LINKS)}"
        )
    return Cluster(chosen, many, nodes, LINKS[network or chosen.across])
