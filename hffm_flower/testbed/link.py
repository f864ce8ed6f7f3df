"""One direction of a link: a finite queue, a rate, a delay, losses. Time is handed in."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from hffm_flower.errors import ConfigError

LEAST_QUEUE_BYTES: Final = 64 * 1024
QUEUE_S: Final = 0.2
"""What a queue holds besides: so long at the link's rate [s]."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What a direction of a link does to packets.

    Attributes:
        rate_bit_s: At which they leave the queue, one after another [bit/s]; 0: nothing leaves.
        delay_s: Added to each on its way [s].
        jitter_s: Standard deviation of a normal draw whose magnitude is added besides [s];
            packets do not overtake each other.
        loss: Chance that one is lost, having taken its time on the link.
        cut: Whatever is sent is lost at once.

    Raises:
        ConfigError: A number is out of range.
    """

    rate_bit_s: float = math.inf
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    cut: bool = False

    def __post_init__(self) -> None:
        for name in ("rate_bit_s", "delay_s", "jitter_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} = {getattr(self, name)} of a link; it must be >= 0")
        if not (math.isfinite(self.delay_s) and math.isfinite(self.jitter_s)):
            raise ConfigError(f"delay {self.delay_s} s and jitter {self.jitter_s} s must be finite")
        if not 0 <= self.loss <= 1:
            raise ConfigError(f"loss = {self.loss} of a link; it must be in [0, 1]")

    @property
    def queue_bytes(self) -> int:
        """What waits at most: `QUEUE_S` and a round trip at this rate, or `LEAST_QUEUE_BYTES`."""
        if self.rate_bit_s == math.inf:
            return 64 * LEAST_QUEUE_BYTES
        held = self.rate_bit_s / 8 * (QUEUE_S + 2 * self.delay_s)
        return max(LEAST_QUEUE_BYTES, int(held))


@dataclass(slots=True)
class Counters:
    """What became of the packets of a direction.

    Attributes:
        packets: Handed in.
        lost: By chance.
        dropped: Because the queue was full.
        cut: While the link was cut.
        delivered_bytes: At the far end [byte].
    """

    packets: int = 0
    lost: int = 0
    dropped: int = 0
    cut: int = 0
    delivered_bytes: int = 0


class Pipe:
    """One direction of a link.

    Args:
        quality: What it does at first.
        draws: For losses and jitter.
    """

    def __init__(self, quality: Quality, draws: np.random.Generator) -> None:
        self.quality, self.counters = quality, Counters()
        self._draws = draws
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._flying: deque[tuple[float, bytes]] = deque()
        self._waiting_bytes = 0
        self._free_s = self._last_s = -math.inf
        self._sent_bits = 0.0  # of the first that waits

    def change(self, now_s: float, quality: Quality) -> None:
        """From now on do this; what waits leaves by the new rate, what flies goes on.

        Of a packet that is on the air, the rest is sent at the new rate.
        """
        self._advance(now_s)
        if self._waiting:
            since_s = max(self._waiting[0][0], self._free_s)
            self._sent_bits += max(0.0, now_s - since_s) * self.quality.rate_bit_s
        self._free_s = max(self._free_s, now_s)
        self.quality = quality

    def push(self, now_s: float, packet: bytes) -> None:
        """Hand a packet in; it may be lost."""
        counters = self.counters
        counters.packets += 1
        if self.quality.cut:
            counters.cut += 1
            return
        if self._waiting:
            self._advance(now_s)
        if self._waiting_bytes + len(packet) > self.quality.queue_bytes:
            counters.dropped += 1
            return
        self._waiting.append((now_s, packet))
        self._waiting_bytes += len(packet)

    @property
    def due_s(self) -> float:
        """Before this time nothing arrives [s]; infinite if nothing is under way."""
        if self._flying:
            return self._flying[0][0]
        if self._waiting:
            return self._leaves_s() + self.quality.delay_s
        return math.inf

    def pull(self, now_s: float) -> list[tuple[float, bytes]]:
        """What has arrived by now, with the time of each."""
        self._advance(now_s)
        arrived, flying = [], self._flying
        while flying and flying[0][0] <= now_s:
            arrived.append(flying.popleft())
        self.counters.delivered_bytes += sum(len(packet) for _, packet in arrived)
        return arrived

    def _leaves_s(self) -> float:
        """When the first that waits has left."""
        came_s, packet = self._waiting[0]
        rate = self.quality.rate_bit_s
        left = max(0.0, 8 * len(packet) - self._sent_bits)
        return max(came_s, self._free_s) + (left / rate if rate else math.inf)

    def _advance(self, now_s: float) -> None:
        quality, waiting = self.quality, self._waiting
        while waiting and (leaves_s := self._leaves_s()) <= now_s:
            _, packet = waiting.popleft()
            self._waiting_bytes -= len(packet)
            self._free_s, self._sent_bits = leaves_s, 0.0
            if quality.loss and self._draws.random() < quality.loss:
                self.counters.lost += 1
                continue
            arrives_s = leaves_s + quality.delay_s
            if quality.jitter_s:
                arrives_s += abs(self._draws.normal(0.0, quality.jitter_s))
            self._last_s = max(self._last_s, arrives_s)
            self._flying.append((self._last_s, packet))
