"""What every tier makes of a run's config: the schedule, and an edge's strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hffm_flower.config import RunConfig
from hffm_flower.lora import Scaling
from hffm_flower.modules import ModuleKey
from hffm_flower.report import RoundReport
from hffm_flower.schedule import Schedule
from hffm_flower.tree import plan_options
from hffm_flower.wireless.network import Network
from strategies.edge import EdgeStrategy
from strategies.modular import Member, highest_ranks
from strategies.peering import PeerEdgeStrategy
from strategies.planner import NO_PLAN, PeerPlanner
from strategies.rules import LoraPolicy


def schedule_of(config: RunConfig, keys: Iterable[ModuleKey]) -> Schedule:
    """Scope and period of all modules of a run.

    Raises:
        ConfigError: A pattern of ``server.modules`` matches none of them.
    """
    names = sorted(keys)
    policy = config.server.modules
    if config.server.lora_rule == "lora-share-a" and any(k.name.endswith(".B") for k in names):
        policy = f"*/*.B=device {policy}"
    return Schedule.of(
        names, method=config.method, policy=policy,
        period=config.tree.period, rounds=config.rounds,
    )  # fmt: skip


def lora_of(config: RunConfig, members: Iterable[Member], *, cloud: bool) -> LoraPolicy:
    """How a tier aggregates LoRA: an edge keeps all, the cloud what its highest device can use.

    Args:
        config: The run's settings.
        members: The tier's children.
        cloud: Whether it is the cloud.
    """
    server, highest = config.server, highest_ranks(members)
    most = server.cloud_rank if cloud else server.edge_rank
    keeps = dict.fromkeys(highest, most) if most else highest if cloud else {}
    return LoraPolicy(server.lora_rule, Scaling(config.model.lora_scaling), keeps)


def edge_of(
    config: RunConfig,
    network: Network,
    index: int,
    members: Mapping[int, Member],
    schedule: Schedule,
    *,
    on_round: Callable[[RoundReport], None],
    **peers: Any,
) -> EdgeStrategy:
    """The strategy of edge ``index``, with D2D if the config says so.

    Args:
        config: The run's settings.
        network: Where everybody stands.
        index: Index of the edge.
        members: Node id -> device, of its cluster.
        schedule: Of the run.
        on_round: Told of every edge round.
        peers: What devices that reach each other need; for `PeerEdgeStrategy`.
    """
    server = config.server
    settings: dict[str, Any] = {
        "seed": config.seed, "fraction": server.fraction, "rule": server.rule,
        "optimizer": server.optimizer, "quorum": server.quorum,
        "deadline_s": server.deadline_s, "report_every": server.evaluate_every,
        "on_round": on_round, "lora": lora_of(config, members.values(), cloud=False),
    }  # fmt: skip
    if config.d2d.plan == NO_PLAN:
        return EdgeStrategy(index, members, schedule, **settings)
    planner = PeerPlanner(config.d2d.plan, plan_options(config), network, config.seed)
    return PeerEdgeStrategy(index, members, schedule, planner=planner, **settings, **peers)
