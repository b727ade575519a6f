"""What becomes of a message on a link that loses packets: more bits on the air, or no message at all.

Draws are keyed by whatever names the message, so that they do not depend on who else sends, or on what came before.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from roundelay.errors import ConfigError
from roundelay.simulation.network.checks import check_number
from roundelay.simulation.network.draws import log


@dataclass(frozen=True, slots=True)
class Crossing:
    """How a message gets across: ``bits`` go on the air, ``retransmitted_bits`` of them because others were lost.
    ``lost`` says why it does not arrive, although its bits were sent; empty where it does.
    """

    bits: int
    retransmitted_bits: int = 0
    lost: str = ""


class Errors(Protocol):
    def crossing(self, bits: int, key: int, loss_probability: float | None = None) -> Crossing:
        """Draw how ``bits`` get across. ``loss_probability`` is what a radio says of this link, in place of the
        component's own.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Arq:
    """Every packet is sent until it is received, each try lost with the same probability q.

    The tries of n packets are n plus a negative binomial number: of mean n / (1 - q) and variance n q / (1 - q)^2. The
    last packet is as long as what is left. With ``max_tries``, a packet that is lost so often ends its message there.
    """

    loss_probability: float = 0.0
    packet_bits: int = 12_000
    max_tries: int | None = None

    def __post_init__(self) -> None:
        check_number(self, "loss_probability", least=0, most=1)
        if self.loss_probability == 1 and self.max_tries is None:
            raise ConfigError("Arq: a loss of 1 needs max_tries: no packet would ever arrive")
        for name in ("packet_bits", "max_tries"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"Arq: {name} must be a whole number of at least 1, got {value!r}")

    def crossing(self, bits: int, key: int, loss_probability: float | None = None) -> Crossing:
        q = _probability(self.loss_probability if loss_probability is None else loss_probability, "Arq")
        if q == 0:
            return Crossing(bits)
        if q == 1 and self.max_tries is None:
            raise ConfigError("Arq: the link loses every packet; give max_tries, or a patience after which it is lost")
        num_packets = -(-bits // self.packet_bits)
        last_bits = bits - (num_packets - 1) * self.packet_bits
        tries = self._tries(num_packets, q, key)
        lost = ""
        if self.max_tries is not None and (given_up := np.flatnonzero(tries > self.max_tries)).size:
            num_sent = int(given_up[0]) + 1  # the rest is not sent any more
            tries = np.minimum(tries[:num_sent], self.max_tries)
            last_bits = last_bits if num_sent == num_packets else self.packet_bits
            bits = (num_sent - 1) * self.packet_bits + last_bits
            lost = f"a packet was lost {self.max_tries} times"
        sent = int(tries[:-1].sum()) * self.packet_bits + int(tries[-1]) * last_bits
        return Crossing(sent, sent - bits, lost)

    def _tries(self, num_packets: int, q: float, key: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        if q == 1:
            return np.full(num_packets, math.inf)
        uniform = 1 - np.random.Generator(np.random.Philox(key=key)).random(num_packets)  # in (0, 1]
        return 1 + np.floor(log(uniform) / log(np.array([q])))


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """A message is sent once, and lost as a whole or not at all (M. Chen et al., IEEE TWC 2021, arXiv 1909.07972)."""

    loss_probability: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "loss_probability", least=0, most=1)

    def crossing(self, bits: int, key: int, loss_probability: float | None = None) -> Crossing:
        q = _probability(self.loss_probability if loss_probability is None else loss_probability, "Erasure")
        drawn = float(np.random.Generator(np.random.Philox(key=key)).random())
        return Crossing(bits, lost=f"erased, which happens with probability {q:.3g}" if drawn < q else "")


def _probability(loss_probability: float, component: str) -> float:
    if not 0 <= loss_probability <= 1:
        raise ConfigError(f"{component}: loss_probability must be a probability, got {loss_probability!r}")
    return float(loss_probability)
