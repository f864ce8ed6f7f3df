"""The tree that a run is built on: where devices and edges stand, and the radio between them."""

from __future__ import annotations

import math
from pathlib import Path

from hffm_flower.config import RunConfig
from hffm_flower.d2d import PlanOptions
from hffm_flower.errors import ConfigError
from hffm_flower.ledger import LinkClass
from hffm_flower.placement import Site, place
from hffm_flower.topology import Clusters
from hffm_flower.wireless.channel import channel_of
from hffm_flower.wireless.network import Network
from hffm_flower.wireless.radio import Radio
from hffm_flower.wireless.rate import Backhaul
from hffm_flower.wireless.tr38901 import Cell

USUAL_AREA_M = 5000.0
SLOWEST_S_BIT = 3600.0
CROWDED_M = 1000.0
"""Side of the square that each edge has for itself at the least [m]."""


def plant(config: RunConfig) -> Network:
    """Place the devices and edges of a run and join them by the radio.

    A method without edges keeps the places of the edges as access points: a device's message
    goes over its radio to the nearest one of its cluster, and over the wire from there.

    Raises:
        ConfigError: A setting of ``[radio]`` cannot work.
    """
    radio, tree = config.radio, config.tree
    edges = min(tree.edges, tree.devices)
    site = Site(
        devices=tree.devices,
        edges=edges,
        area_m=radio.area_m or max(USUAL_AREA_M, CROWDED_M * math.sqrt(edges)),
        coordinates=Path(radio.coordinates).expanduser() if radio.coordinates else None,
    )
    placement = "coordinates" if radio.coordinates else radio.placement
    layout = place(placement, site, config.seed)
    found = (len(layout.positions_m), len(layout.edge_positions_m))
    if found != (tree.devices, edges):
        raise ConfigError(
            f"{radio.coordinates} has {found[0]} devices and {found[1]} edges, but tree.devices = "
            f"{tree.devices} and tree.edges = {edges}",
            key="radio.coordinates",
        )
    network = Network.of(
        layout,
        radio_of(config),
        config.seed,
        associate=radio.associate,
        links=None if config.d2d.plan == "none" else radio.links,
        reach=radio.reach or None,
    )
    if network.topology.links and isinstance(network.radio.law(LinkClass.D2D), Cell):
        raise ConfigError(
            "uma and umi are laws between a base station and a device; name another one for the "
            "links between devices, such as log-distance",
            key="radio.d2d-channel",
        )
    costs = network.block(0).costs(range(tree.devices))
    for device in range(tree.devices):
        if not max(costs.uplink_s[device], costs.downlink_s[device]) < SLOWEST_S_BIT:
            raise ConfigError(
                f"device {device}, {network.topology.uplink_m()[device]:.0f} m from its edge, "
                "reaches it with less than a bit an hour; raise the powers or the bandwidth, or "
                "lower radio.noise-figure-db or radio.area-m",
                key="radio.tx-power-mw",
            )
    return network


def radio_of(config: RunConfig) -> Radio:
    """``[radio]`` in SI units.

    Raises:
        ConfigError: A name in it is unknown.
    """
    radio = config.radio
    for key in ("channel", "d2d_channel"):
        try:
            channel_of(getattr(radio, key) or radio.channel)
        except ConfigError as error:
            raise ConfigError(str(error), key=f"radio.{key.replace('_', '-')}") from error
    return Radio(
        channel=radio.channel,
        d2d_channel=radio.d2d_channel,
        sharing=radio.sharing,
        tx_power_w=radio.tx_power_mw / 1e3,
        rx_power_w=radio.rx_power_mw / 1e3,
        edge_tx_power_w=radio.edge_tx_power_mw / 1e3,
        amplifier_efficiency=radio.amplifier_efficiency,
        bandwidth_hz=radio.bandwidth_khz * 1e3,
        d2d_bandwidth_hz=(radio.d2d_bandwidth_khz or radio.bandwidth_khz) * 1e3,
        noise_figure_db=radio.noise_figure_db,
        backhaul=Backhaul(radio.backhaul_mbit_s * 1e6, radio.backhaul_delay_ms / 1e3),
        backhaul_power_w=radio.backhaul_power_mw / 1e3,
        flops_per_s=radio.device_gflop_s * 1e9,
        cpu_hz=radio.device_cpu_mhz * 1e6,
        kappa=radio.device_kappa,
        battery_j=radio.device_battery_j,
    )


def groups_of(config: RunConfig, network: Network) -> Clusters:
    """Devices that average together: those of each edge, or all where there are no edges."""
    return (tuple(range(config.tree.devices)),) if config.flat else network.topology.clusters


def plan_options(config: RunConfig) -> PlanOptions:
    """``[d2d]`` as the planners take it."""
    d2d = config.d2d
    return PlanOptions(
        head=d2d.head, summing=d2d.summing, accuracy=d2d.accuracy, segments=d2d.segments
    )
