"""The tables of a run's settings, one class each: names, types, defaults, bounds.

Keys are written with dashes in files and on the command line (``local-epochs``).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _words(value: object) -> object:
    """Accept ``"a b"`` and ``["a", "b"]`` alike."""
    return tuple(value.split()) if isinstance(value, str) else value


def _numbers(value: object) -> object:
    """Accept ``1``, ``"1 2"`` and ``[1, 2]`` alike."""
    single = isinstance(value, int | float) and not isinstance(value, bool)
    return (value,) if single else _words(value)


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Size = Annotated[float, Field(gt=0)]
Sizes = Annotated[tuple[Size, ...], BeforeValidator(_numbers)]
Rank = Annotated[int, Field(ge=1, le=1024)]
Ranks = Annotated[tuple[Rank, ...], BeforeValidator(_numbers)]


class Section(BaseModel):
    """A frozen table that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
        allow_inf_nan=False,
    )


class TreeConfig(Section):
    """The tree: how many devices and edges, and how often edges meet the cloud."""

    devices: int = Field(40, ge=1, le=10_000)
    edges: int = Field(10, ge=1, le=10_000)
    period: int = Field(2, ge=1, description="edge rounds per cloud round (E)")
    memory_mib: Sizes = Field(
        (), description="of devices, for adapters or experts in training; each has one of these"
    )
    edge_memory_mib: float = Field(0.0, ge=0, description="of an edge, for experts; 0: no limit")


class DataConfig(Section):
    """Tasks, and the skews by which their data lie on the devices."""

    tasks: Words = ("easyvqa10", "emojivqa10", "watch7", "easyvqa-box")
    alpha: float = Field(0.5, gt=0, description="Dirichlet label skew; small = more skewed")
    full_modality_share: float = Field(
        0.6, ge=0, le=1, description="share of devices with all modalities of their tasks"
    )
    min_tasks: int = Field(1, ge=1)
    max_tasks: int = Field(3, ge=1)
    train_per_answer: int = Field(100, ge=1)
    test_per_answer: int = Field(50, ge=1)


class ModelConfig(Section):
    """Encoders, backbone and adapters."""

    backbone: str = "minilm-fusion"
    encoders: Words = Field(
        ("image=lite0", "text=minilm", "sensor=patches", "audio=speech"),
        description="modality=encoder, or modality=hf:FOLDER or =hf:OWNER/NAME: a checkpoint",
    )
    encoder_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="in which frozen encoders of checkpoints (hf:) compute"
    )
    weights: Literal["pretrained", "random"] = Field(
        "pretrained", description="frozen weights: pretrained, or random as a baseline"
    )
    adapter: Literal["bottleneck", "lora", "experts", "none"] = Field(
        "bottleneck", description="what is trained in the backbone's frozen layers"
    )
    adapter_rank: int = Field(32, ge=1, le=1024, description="width of a bottleneck")
    adapter_layers: int = Field(
        0, ge=0, description="last frozen layers in which something is trained; 0: all"
    )
    adapter_wiring: Literal["both", "corrected", "published"] = Field(
        "both", description="where bottlenecks stand in a layer"
    )
    backbone_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of a checkpoint's weights in memory"
    )
    lora_ranks: Ranks = Field((8,), min_length=1, description="each device has one of these")
    lora_alpha: float = Field(16.0, gt=0)
    lora_scaling: Literal["standard", "rslora"] = Field(
        "standard", description="scale alpha / rank, or alpha / sqrt(rank)"
    )
    lora_targets: Words = Field(("query", "value"), description="projections of the backbone")
    tune: Words = Field(
        (), description="modality=last:N or modality=lora:R[:N]: trained last blocks of an encoder"
    )
    tune_targets: Words = Field(("*",), description="layers of those blocks that get LoRA")
    prompts: Words = Field((), description="task=N, modality=N, missing=N: soft prompt tokens")
    experts: int = Field(4, ge=1, le=256)
    experts_per_example: int = Field(2, ge=1, description="top-k of the gate")
    expert_copies: int = Field(2, ge=1, description="devices that hold each expert, at least")
    experts_held: int = Field(0, ge=0, description="by a device, at most; 0: as memory allows")
    experts_lent: int = Field(
        0, ge=0, description="experts of others that a device gets for each round besides"
    )
    whole: bool = Field(False, description="baseline: no modules, absent inputs are zeros")


class TrainConfig(Section):
    """Local training on a device."""

    local_epochs: int = Field(2, ge=1)
    local_steps: int = Field(0, ge=0, description="steps per round; 0: local-epochs decide")
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    final_learning_rate: float = Field(
        0.2, gt=0, le=1, description="share of learning-rate that is left at t = T (linear)"
    )
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, ge=0, description="0: no clipping")
    proximal_mu: float = Field(0.0, ge=0, description="FedProx term; 0: off")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpointing: bool = Field(
        False, description="compute inner states again in the backward pass, to keep less"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    head_epochs: int = Field(
        0, ge=0, description="passes before these that train what stays on the device, alone"
    )
    modality_dropout: float = Field(
        0.0, ge=0, lt=1, description="chance that a batch goes without an optional modality"
    )
    balance: float = Field(0.01, ge=0, description="weight of the experts' load-balancing loss")


class ServerConfig(Section):
    """Aggregation: policies of the modules, participation, deadlines."""

    modules: str = Field("", description="policy string, e.g. 'head/*=cloud:1 prompt/*=edge'")
    fraction: float = Field(1.0, gt=0, le=1, description="participation per edge round")
    quorum: float = Field(0.5, ge=0, le=1, description="share of asked nodes that must answer")
    deadline_s: float = Field(600.0, gt=0, description="wait for one edge round's answers")
    rule: str = Field("mean", description="how updates become one: mean, median")
    lora_rule: str = Field(
        "lora-exact",
        description="of LoRA factors: lora-exact, -naive, -ffa, -alternate, -share-a",
    )
    edge_rank: int = Field(0, ge=0, description="lora-exact: what edges keep; 0: all")
    cloud_rank: int = Field(0, ge=0, description="what the cloud keeps; 0: the highest device's")
    optimizer: str = Field(
        "*=mean", description="kind=mean | momentum:LR:BETA | adam:LR, first match wins"
    )
    evaluate_every: int = Field(
        2, ge=1, description="edge rounds between reports of methods that never reach the cloud"
    )


class D2DConfig(Section):
    """Exchange between the devices of a cluster."""

    plan: str = Field("none", description="none, relay, gossip, cooperative")
    head: str = Field("latency", description="who uploads for a cluster: latency, energy, battery")
    summing: bool = Field(True, description="relay: sum on the way; false: forward one by one")
    accuracy: float = Field(1e-2, ge=1e-6, lt=1, description="gossip: distance left to the mean")
    segments: int = Field(
        2,
        ge=2,
        le=100,
        description="cooperative: parts of a round's training, an exchange after each",
    )


class RadioConfig(Section):
    """Where everything stands, and what the air, the wires and the processors can do."""

    placement: str = Field("case-study", description="case-study, uniform, clustered, coordinates")
    coordinates: str = Field("", description="CSV file for placement coordinates")
    area_m: float = Field(
        0.0, ge=0, le=1e7, description="side of the square; 0: 5 km, more if crowded"
    )
    associate: str = Field("cluster", description="a device's edge: cluster, best-channel")
    links: str = Field("radius", description="D2D links beside a tree: radius, nearest, tree")
    reach: float = Field(0.0, ge=0, description="radius [m] or nearest devices; 0: 30 m, 2")
    channel: str = Field("rayleigh", description="rayleigh, rician, log-distance, uma, umi")
    d2d_channel: str = Field("", description="the same between devices; empty: as channel")
    sharing: str = Field("fdma", description="a band among senders: fdma, fixed")
    tx_power_mw: float = Field(200.0, gt=0, le=1e9, description="device, sending")
    rx_power_mw: float = Field(100.0, ge=0, le=1e9, description="device, receiving")
    edge_tx_power_mw: float = Field(
        1000.0, gt=0, le=1e9, description="edge, sending, for each device that it sends to"
    )
    amplifier_efficiency: float = Field(
        1.0, ge=1e-3, le=1, description="radiated over drawn power while sending over the air"
    )
    bandwidth_khz: float = Field(1000.0, ge=1e-3, le=1e9, description="of a cell, each direction")
    d2d_bandwidth_khz: float = Field(0.0, ge=0, le=1e9, description="of a cluster; 0: as a cell")
    noise_figure_db: float = Field(0.0, ge=0, le=300)
    backhaul_mbit_s: float = Field(4.0, ge=1e-6, le=1e9)
    backhaul_delay_ms: float = Field(100.0, ge=0, le=1e9)
    backhaul_power_mw: float = Field(800.0, ge=0, le=1e9)
    device_gflop_s: float = Field(10.0, ge=1e-6, le=1e9)
    device_cpu_mhz: float = Field(1000.0, ge=1e-3, le=1e6)
    device_kappa: float = Field(
        1e-28, ge=0, le=1e-20, description="switched capacitance [J s^2 / cycle]"
    )
    device_battery_j: float = Field(10_000.0, gt=0, le=1e12)


class DeployConfig(Section):
    """A tree of real processes; ``hffm up``, ``hffm cloud`` and ``hffm edge`` fill this in."""

    tier: Literal["sim", "cloud", "edge"] = Field(
        "sim", description="what this ServerApp is: the whole tree, the cloud, one edge"
    )
    run: str = Field(
        "", description="name of the run for what devices keep; empty: Flower's id of the run"
    )
    edge: int = Field(0, ge=0, description="index of this edge")
    gateway: str = Field("127.0.0.1:9200", description="where this edge hears its upstream node")
    certificates: str = Field("", description="this machine's folder, made by hffm certs")
    insecure: bool = Field(False, description="no TLS; only on a machine of your own")


class SimulationConfig(Section):
    """Ray-backed simulation on this machine."""

    actors: int = Field(0, ge=0, description="processes that play devices; 0: one per CPU")
    gpus_per_actor: float = Field(0.0, ge=0)


class PathsConfig(Section):
    """Where things are kept; empty: the user's cache folder."""

    cache: str = ""
    state: str = ""
    out: str = ""
