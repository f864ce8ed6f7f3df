"""The published case study, priced as published, and with each of its errata mended or not.

With no fix the published table comes out, quirks included; with all, every unit holds. What
each fix changes in figures: ``docs/published-vs-corrected.md``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from hffm_flower.errors import ConfigError
from hffm_flower.routes import Link, shortest_routes, spanning_tree
from hffm_flower.wireless.case_study import CaseStudy, Fix
from hffm_flower.wireless.draws import Draws
from hffm_flower.wireless.energy import Activity, Compute, compute_s
from hffm_flower.wireless.rate import Backhaul, latency_s, rate_bit_s
from hffm_flower.wireless.units import Array, positive, ratio_of_db, w_of_dbm


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a method, per edge round: latency of the slowest cluster, energy of all."""

    latency_s: float
    energy_j: float


@dataclass(frozen=True, slots=True)
class Relay:
    """A cluster's D2D: slowest path to and from the head, energy of all models to it and back."""

    up_s: float
    down_s: float
    up_j: float
    down_j: float


@dataclass(frozen=True, slots=True, eq=False)
class Priced:
    """Links, relays and methods of one run.

    Attributes:
        uplink_rate_bit_s: ``[N]``.
        uplink_s: Time of one payload ``[N]``.
        pair_rate_bit_s: ``[P]``, in the order of `Draws.pairs`.
        pair_s: Time of one payload ``[P]``.
        relays: Of each cluster.
        methods: Method -> its cost.
    """

    uplink_rate_bit_s: Array
    uplink_s: Array
    pair_rate_bit_s: Array
    pair_s: Array
    relays: tuple[Relay, ...]
    methods: Mapping[str, Cost]


@dataclass(frozen=True, slots=True)
class _Powers:
    uplink_w: float
    d2d_w: float


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is not finite is refused
def price(draws: Draws, *, fixes: Collection[Fix] = (), study: CaseStudy | None = None) -> Priced:
    """Price one run's links, relays and methods.

    Raises:
        ConfigError: Two nodes stand in one place, or a cost is not finite.

    Source: algorithms of the published case study, with its constants in `CaseStudy`.
    """
    study = study or CaseStudy()
    layout = draws.layout
    bits = study.true_payload_bits if Fix.TRUE_PAYLOAD in fixes else study.payload_bits
    edge_of = {d: e for e, members in enumerate(layout.clusters) for d in members}
    stations = layout.edge_positions_m[[edge_of[d] for d in range(len(layout.positions_m))]]
    senders = layout.positions_m[[a for a, _ in draws.pairs]]
    receivers = layout.positions_m[[b for _, b in draws.pairs]]
    d2d_hz = study.uplink_hz if Fix.EQUAL_BANDWIDTH in fixes else study.d2d_hz
    uplink_rate = _rates(
        layout.positions_m - stations, draws.uplink_fading, study.uplink_rate_power_w,
        study.uplink_hz, fixes, study,
    )  # fmt: skip
    pair_rate = _rates(
        senders - receivers, draws.pair_fading, study.d2d_rate_power_w, d2d_hz, fixes, study
    )
    uplink_s, pair_s = latency_s(bits, uplink_rate), latency_s(bits, pair_rate)
    powers = _Powers(study.uplink_energy_power_w, study.d2d_energy_power_w)
    if Fix.EQUAL_POWER in fixes:
        powers = _Powers(study.uplink_rate_power_w, study.d2d_rate_power_w)
    time_s = dict(zip(draws.pairs, pair_s.tolist(), strict=True))
    relays = tuple(
        _relay(draws, e, time_s, powers, study.link_radius_m) for e in range(len(layout.clusters))
    )
    methods = _methods(draws, uplink_s, relays, bits, powers, fixes, study)
    return Priced(uplink_rate, uplink_s, pair_rate, pair_s, relays, methods)


def _rates(
    apart_m: Array, fading: Array, tx_power_w: float, bandwidth_hz: float,
    fixes: Collection[Fix], study: CaseStudy,
) -> Array:  # fmt: skip
    distance_m = positive("distance_m", np.linalg.norm(apart_m, axis=1))
    power = fading / 2 if Fix.UNIT_FADING in fixes else fading
    gain = power * ratio_of_db(study.reference_gain_db) * distance_m**-study.exponent
    return rate_bit_s(
        gain,
        tx_power_w=tx_power_w,
        bandwidth_hz=bandwidth_hz,
        noise_w_hz=float(w_of_dbm(study.noise_dbm_hz)),
        noise_bandwidth_hz=bandwidth_hz if Fix.NOISE_HZ in fixes else bandwidth_hz / 1000,
    )


def _relay(
    draws: Draws, cluster: int, time_s: Mapping[Link, float], powers: _Powers, radius_m: float
) -> Relay:
    members, head = draws.layout.clusters[cluster], draws.heads[cluster]
    inside = {p: s for p, s in time_s.items() if p[0] in members}
    at_m = draws.layout.positions_m
    links = {(a, b) for a, b in inside if np.linalg.norm(at_m[a] - at_m[b]) <= radius_m}
    for a, b in spanning_tree(inside):
        links |= {(a, b), (b, a)}
    usable = {p: inside[p] for p in links}
    up = shortest_routes(usable, head, nodes=members, towards=True)
    down = shortest_routes(usable, head, nodes=members, towards=False)
    return Relay(
        up_s=up.slowest(),
        down_s=down.slowest(),
        up_j=powers.d2d_w * sum(up.cost.values()),
        down_j=powers.d2d_w * sum(usable[parent, n] for n, parent in down.parent.items()),
    )


def _methods(
    draws: Draws, uplink_s: Array, relays: Collection[Relay], bits: float, powers: _Powers,
    fixes: Collection[Fix], study: CaseStudy,
) -> dict[str, Cost]:  # fmt: skip
    wire_s = float(Backhaul(study.backhaul_rate_bit_s, study.backhaul_delay_s).latency_s(bits))
    wire_j = wire_s * study.cloud_energy_power_w
    train_s, train_j = 0.0, 0.0
    if Fix.COMPUTE in fixes:
        train_s = float(compute_s(study.training_flops, study.flops_per_s))
        cycles = study.training_flops * study.cpu_hz / study.flops_per_s
        train_j = float(Compute(study.cpu_hz, study.kappa).energy_j(Activity(cycles=cycles)))
    down = float(Fix.DOWNLINK in fixes)
    devices = len(uplink_s)

    def total(parts: Iterable[tuple[float, float]]) -> Cost:
        seconds, joules = zip(*parts, strict=True)
        cost = Cost(train_s + max(seconds), devices * train_j + sum(joules))
        if not (math.isfinite(cost.latency_s) and math.isfinite(cost.energy_j)):
            raise ConfigError(
                f"a cost is {cost.latency_s:g} s, {cost.energy_j:g} J: constants or draws are "
                "beyond what a link can be"
            )
        return cost

    cells = [
        (uplink_s[list(members)], float(uplink_s[head]), relay)
        for members, head, relay in zip(draws.layout.clusters, draws.heads, relays, strict=True)
    ]

    def tree(g: float, to_cloud: float) -> Cost:
        """Every device sends up each edge round; the slowest one's broadcast comes down."""
        return total(
            (
                (1 + down) * (wire_s / g + float(up_s.max())),
                (1 + down) * to_cloud * wire_j / g
                + powers.uplink_w * float(up_s.sum() + down * up_s.max()),
            )
            for up_s, _, _ in cells
        )

    def relayed(g: float, to_cloud: float) -> Cost:
        """D2D each edge round; the head alone sends up, once a cloud round."""
        parts = []
        for up_s, own_s, relay in cells:
            head_s = own_s if Fix.HEAD_UPLINK in fixes else float(up_s.mean())
            seconds = wire_s + (relay.up_s + relay.down_s) * (g - 1) + relay.up_s + head_s
            joules = to_cloud * wire_j + (relay.up_j + relay.down_j) * (g - 1) + relay.up_j
            joules += powers.uplink_w * head_s
            seconds += down * (wire_s + own_s + relay.down_s)
            joules += down * (to_cloud * wire_j + powers.uplink_w * own_s + relay.down_j)
            parts.append((seconds / g, joules / g))
        return total(parts)

    never = study.edge_only_rounds
    star = [((1 + down) * wire_s, (1 + down) * wire_j)] * devices
    return {
        "star": total(star),
        "edge_only": tree(never, 0.0),
        "edge_only_d2d": relayed(never, 0.0),
        "hffm_2": tree(2.0, 1.0),
        "hffm_8": tree(8.0, 1.0),
        "hffm_d2d_2": relayed(2.0, 1.0),
        "hffm_d2d_8": relayed(8.0, 1.0),
    }
