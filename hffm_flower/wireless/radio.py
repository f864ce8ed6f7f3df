"""What the nodes of a tree send, receive and compute with."""

from __future__ import annotations

from dataclasses import dataclass, field

from hffm_flower.errors import one_of
from hffm_flower.ledger import LinkClass
from hffm_flower.wireless.channel import ChannelModel, channel_of
from hffm_flower.wireless.energy import Activity, Receive, Transmit
from hffm_flower.wireless.rate import SHARING, Backhaul
from hffm_flower.wireless.units import not_negative, positive


@dataclass(frozen=True, slots=True)
class Radio:
    """What all nodes of a kind have in common.

    Attributes:
        channel: Between a device and its edge, as `channel_of` takes it.
        d2d_channel: The same between devices; empty: as ``channel``.
        tx_power_w: Of a device [W].
        bandwidth_hz: Band of a cell, for the uplink and again for the downlink [Hz].
        noise_figure_db: Of every receiver [dB].
        sharing: Name in `SHARING`: how those who send at once share a band.
        edge_tx_power_w: Of an edge, to each device that it sends to [W].
        amplifier_efficiency: Of who sends over the air: radiated over drawn power, in (0, 1].
        rx_power_w: Of a device while it receives [W].
        d2d_bandwidth_hz: Band of a cluster's D2D links [Hz]; none: as `bandwidth_hz`.
        backhaul: Wire between every edge and the cloud.
        backhaul_power_w: Drawn at the sender for the time on the backhaul [W].
        flops_per_s: Floating point operations of a device per second [1/s].
        cpu_hz: Clock of a device [Hz].
        kappa: Effective switched capacitance of a device [J s^2 / cycle].
        battery_j: Energy of a device's full battery [J].

    Raises:
        ConfigError: An unknown name or a quantity that is not allowed.
    """

    channel: str = "rayleigh"
    d2d_channel: str = ""
    tx_power_w: float = 0.2
    bandwidth_hz: float = 1e6
    noise_figure_db: float = 0.0
    sharing: str = "fdma"
    edge_tx_power_w: float = 1.0
    amplifier_efficiency: float = 1.0
    rx_power_w: float = 0.1
    d2d_bandwidth_hz: float | None = None
    backhaul: Backhaul = field(default_factory=Backhaul)
    backhaul_power_w: float = 0.8
    flops_per_s: float = 1e10
    cpu_hz: float = 1e9
    kappa: float = 1e-28
    battery_j: float = 1e4

    def __post_init__(self) -> None:
        for link in (LinkClass.UPLINK, LinkClass.D2D):
            self.law(link)
            self.sender_w(link)
        one_of("sharing", self.sharing, SHARING)
        for name in ("tx_power_w", "bandwidth_hz", "edge_tx_power_w", "flops_per_s", "cpu_hz",
                     "battery_j"):  # fmt: skip
            positive(name, getattr(self, name))
        for name in ("noise_figure_db", "rx_power_w", "backhaul_power_w", "kappa"):
            not_negative(name, getattr(self, name))
        if self.d2d_bandwidth_hz is not None:
            positive("d2d_bandwidth_hz", self.d2d_bandwidth_hz)

    def law(self, link: LinkClass) -> ChannelModel:
        """Channel of that class of radio links."""
        return channel_of(self.d2d_channel if self.d2d_channel and link is LinkClass.D2D
                          else self.channel)  # fmt: skip

    def band_hz(self, link: LinkClass) -> float:
        """Band of that class of radio links, before it is shared [Hz]."""
        if link is LinkClass.D2D and self.d2d_bandwidth_hz is not None:
            return self.d2d_bandwidth_hz
        return self.bandwidth_hz

    def radiated_w(self, link: LinkClass) -> float:
        """Power of the sender's signal over that class of radio links [W]."""
        return self.edge_tx_power_w if link is LinkClass.DOWNLINK else self.tx_power_w

    def sender_w(self, link: LinkClass) -> float:
        """Power that the sender draws while sending [W]."""
        if link is LinkClass.BACKHAUL:
            return self.backhaul_power_w
        model = Transmit(self.radiated_w(link), self.amplifier_efficiency)
        return float(model.energy_j(Activity(sent_s=1.0)))

    def receiver_w(self, link: LinkClass) -> float:
        """Power that the receiver draws while receiving [W]; only devices count."""
        if link in (LinkClass.UPLINK, LinkClass.BACKHAUL):
            return 0.0
        return float(Receive(self.rx_power_w).energy_j(Activity(received_s=1.0)))
