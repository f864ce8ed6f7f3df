"""Plans of a cluster's exchanges, made each round from what the radio is in that round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from hffm_flower.config import RunConfig
from hffm_flower.d2d import (
    EDGE,
    FORWARDING,
    HEADS,
    PLANS,
    Cluster,
    Plan,
    PlanOptions,
    check_summable,
    make_plan,
)
from hffm_flower.errors import ConfigError, one_of
from hffm_flower.ledger import LinkClass
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.wireless.network import Network
from strategies.lora_rules import LORA_RULES
from strategies.rules import RULES
from strategies.server_optimizers import OptimizerPolicy

NO_PLAN = "none"


def check_exchange(config: RunConfig) -> None:
    """Refuse settings of ``[d2d]`` and ``server.rule`` that cannot work.

    Raises:
        ConfigError: An unknown name, or a plan that sums what the rule does not let it.
    """
    server = config.server
    one_of("rule", server.rule, RULES, key="server.rule")
    one_of("rule", server.lora_rule, LORA_RULES, key="server.lora-rule")
    used = {"server.rule": (server.rule, {n: r.summable for n, r in RULES.items()})}
    if config.has_lora:
        able = {n: r.summable for n, r in LORA_RULES.items()}
        used["server.lora-rule"] = (server.lora_rule, able)
        check_lora(config)
    if config.d2d.plan == NO_PLAN:
        return
    one_of("plan", config.d2d.plan, [NO_PLAN, *PLANS], key="d2d.plan")
    one_of("head", config.d2d.head, HEADS, key="d2d.head")
    if not config.d2d.summing and config.d2d.plan not in FORWARDING:
        raise ConfigError(
            f"plan {config.d2d.plan!r} always sums; false is for {', '.join(FORWARDING)}",
            key="d2d.summing",
        )
    for key, (name, rules) in used.items():
        try:
            check_summable(name, rules[name], config.d2d.plan, config.d2d.summing)
        except ConfigError as error:
            summable = ", ".join(n for n, sums in rules.items() if sums)
            raise ConfigError(f"{error}: {summable}", key=key) from error


def check_lora(config: RunConfig) -> None:
    """Refuse ranks and optimisers that the rule for LoRA cannot take.

    Raises:
        ConfigError: Ranks differ where they may not, or an optimiser acts on factors whose rank
            changes.
    """
    name, ranks = config.server.lora_rule, config.model.lora_ranks
    mixed = LORA_RULES[name].mixed
    if len(set(ranks)) > 1 and config.model.adapter == "lora" and not mixed:
        able = ", ".join(n for n, rule in LORA_RULES.items() if rule.mixed)
        raise ConfigError(
            f"{name} needs one rank for all devices, not {' '.join(map(str, ranks))}; "
            f"rules for ranks that differ: {able}",
            key="model.lora-ranks",
        )
    if config.server.rule != "mean":
        raise ConfigError(
            f"{config.server.rule!r} does not act on LoRA factors, which have a rule of their own "
            f"({name}); allowed with LoRA: 'mean'",
            key="server.rule",
        )
    kinds = [ModuleKind.ADAPTER] if config.model.adapter == "lora" else []
    kinds += [ModuleKind.ENCODER] if any("=lora:" in t for t in config.model.tune) else []
    optimizer = OptimizerPolicy(config.server.optimizer)
    if odd := [str(kind) for kind in kinds if mixed and optimizer.acts_on(kind)]:
        raise ConfigError(
            f"an optimizer acts on {', '.join(odd)}, whose rank changes under {name}; allowed "
            f"there: mean, or a rule with one rank",
            key="server.optimizer",
        )


class PeerPlanner:
    """Plans a cluster's exchanges, round by round, from what the radio is in that round.

    Args:
        kind: Name in `PLANS`.
        options: Settings of the plans.
        network: Where the devices stand, and the radio between them.
        seed: The run's seed.
    """

    def __init__(self, kind: str, options: PlanOptions, network: Network, seed: int) -> None:
        self.kind, self.options, self.network, self.seed = kind, options, network, seed
        self.battery_j: dict[int, float] = {}

    def plan(
        self,
        t: int,
        holds: Mapping[int, tuple[ModuleKey, ...]],
        sizes: Mapping[ModuleKey, int],
    ) -> Plan:
        """The exchange of edge round ``t``.

        Args:
            t: Edge round, from 1.
            holds: Device that takes part -> shared modules that it trains.
            sizes: Module -> size [byte].
        """
        costs = self.network.block(t).costs(sorted(holds))
        silent = {(a, b) for a, b in costs.link_s if math.isinf(costs.link_s[a, b])}
        usable = costs.link_s.keys() - silent - {(b, a) for a, b in silent}
        for device in holds:
            self.battery_j.setdefault(device, self.network.radio.battery_j)
        cluster = Cluster(
            holds=holds, sizes=sizes,
            link_s={k: costs.link_s[k] for k in sorted(usable)},
            link_j={k: costs.link_j[k] for k in sorted(usable)},
            uplink_s=costs.uplink_s, uplink_j=costs.uplink_j,
            downlink_s=costs.downlink_s, downlink_j=costs.downlink_j,
            battery_j={k: self.battery_j[k] for k in holds}, t=t, seed=self.seed,
        )  # fmt: skip
        plan = make_plan(self.kind, cluster, self.options)
        plan.check(cluster)
        self._spend(plan, cluster)
        return plan

    def _spend(self, plan: Plan, cluster: Cluster) -> None:
        """Take from the batteries what sending and receiving by the plan costs."""
        radio = self.network.radio

        def charge(
            device: int, power_w: float, second_per_bit: float, size: int, times: int = 1
        ) -> None:
            spent_j = power_w * second_per_bit * 8 * size * times
            self.battery_j[device] = max(0.0, self.battery_j[device] - spent_j)

        def between(src: int, dst: int, keys: Iterable[ModuleKey], times: int = 1) -> None:
            size, each_s = sum(cluster.sizes[k] for k in keys), cluster.link_s[src, dst]
            charge(src, radio.sender_w(LinkClass.D2D), each_s, size, times)
            charge(dst, radio.receiver_w(LinkClass.D2D), each_s, size, times)

        for hop in plan.down:
            if hop.src == EDGE:
                size = sum(cluster.sizes[k] for k in hop.keys)
                down_w = radio.receiver_w(LinkClass.DOWNLINK)
                charge(hop.dst, down_w, cluster.downlink_s[hop.dst], size)
            else:
                between(hop.src, hop.dst, hop.keys)
        for step in plan.steps:
            for src, receivers in step.sends.items():
                for dst, shares in receivers.items():
                    between(src, dst, shares, plan.segments)
        for device, keys in plan.uploads.items():
            size = sum(cluster.sizes[k] for k in keys)
            charge(device, radio.sender_w(LinkClass.UPLINK), cluster.uplink_s[device], size)
