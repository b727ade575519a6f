"""The network of a job: what drives its virtual clock, in one component.

downlink -> computing -> grant -> uplink in the cell -> backhaul -> there
"""

from dataclasses import dataclass
from typing import Any

from roundelay.errors import ConfigError
from roundelay.simulation.network.availability import Always, Availability
from roundelay.simulation.network.cell import Backhaul, Dedicated, EqualShare, Fifo, Links, ResourceBlocks, Sharing
from roundelay.simulation.network.checks import check_choice, check_number, refuse
from roundelay.simulation.network.devices import Device
from roundelay.simulation.network.packets import Errors
from roundelay.simulation.network.radio import PacketErrors, Radio
from roundelay.simulation.network.selection import Select
from roundelay.simulation.network.transfer import Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """``cell`` is a ``Radio``, or ``Links`` of fixed rates; the rest says what happens around it.

    ``sharing`` is how uploads share the band: equal shares unless it is given, and each its own under ``Links``.
    ``downlink`` is one "broadcast" to all that are asked together, at the pace of the slowest, or "unicast".
    ``computing`` is a device model, None where computing takes no time. ``availability`` says who is there at all;
    ``errors`` what becomes of an upload on a link that loses packets, as often as ``loss`` says of a radio's link, or
    the component itself where there is none. ``grant_latency_s`` passes before an upload's first bit. An upload that
    has had no rate at all for ``patience_s``, taken together, is given up. ``backhaul`` is the wire between the base
    station, or an edge of the hierarchical workflow, and the cloud. ``header_bits`` go with every message.

    An upload costs energy by what the radio sends with (23 dBm without one), through an amplifier of
    ``amplifier_efficiency``, and ``circuit_w`` beside it. ``select`` chooses whom to ask, in place of a draw.
    ``transfer(vector, link, generator)`` is your own way over the uplink, in place of cell and errors.

    ``transmit_over_compute`` scales what computing takes so that the median client's upload of the raw update takes
    that many times as long as the median client's computing: 1.0 makes them equal, whatever the model. Codecs do not
    move it.
    """

    cell: Radio | Links
    sharing: Sharing | None = None
    downlink: str = "broadcast"
    computing: Device | None = None
    availability: Availability = Always()
    errors: Errors | None = None
    loss: PacketErrors | None = None
    grant_latency_s: float = 0.0
    patience_s: float = 60.0
    backhaul: Backhaul | None = None
    header_bits: int = 128
    amplifier_efficiency: float = 1.0
    circuit_w: float = 0.0
    select: Select | None = None
    transfer: Transfer | None = None
    transmit_over_compute: float | None = None

    def __post_init__(self) -> None:
        cell: Any = self.cell  # Any: a user may write anything here
        if not isinstance(cell, Radio | Links):
            refuse(self, "cell", "a Radio(...) or Links(uplink_bps=..., downlink_bps=...)")
        if isinstance(self.cell, Links) and not isinstance(self.sharing, Dedicated | Fifo | ResourceBlocks | None):
            raise ConfigError(f"Network: {type(self.sharing).__name__} splits a band, and Links have none: leave "
                              "sharing out, let uploads queue (Fifo), or give a Radio")  # fmt: skip
        check_choice(self, "downlink", "broadcast", "unicast")
        check_number(self, "grant_latency_s", least=0)
        check_number(self, "patience_s", above=0)
        check_number(self, "amplifier_efficiency", above=0, most=1)
        check_number(self, "circuit_w", least=0)
        if isinstance(self.header_bits, bool) or not isinstance(self.header_bits, int) or self.header_bits < 0:
            refuse(self, "header_bits", "a whole number of at least 0")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.loss is not None and (self.errors is None or not isinstance(self.cell, Radio)):
            raise ConfigError("Network: loss says how often a radio's link loses a packet; give it with a Radio, and "
                              "with errors, which say what happens then: Arq() or Erasure()")  # fmt: skip
        if self.transfer is not None and self.errors is not None:
            raise ConfigError("Network: transfer is your own way over the uplink, errors and all: leave errors out")
        if self.transmit_over_compute is not None:
            check_number(self, "transmit_over_compute", above=0)
            if self.computing is None:
                raise ConfigError("Network: transmit_over_compute scales what computing takes, and nothing says that: "
                                  "give computing, such as Cycles(cycles_per_sample=1e6)")  # fmt: skip

    @property
    def discipline(self) -> Sharing:
        if self.sharing is not None:
            return self.sharing
        return Dedicated() if isinstance(self.cell, Links) else EqualShare()
