"""``hffm plan-memory``: what a run takes of each device, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from hffm_flower.cli import options

if TYPE_CHECKING:
    from hffm_flower.session.memory import Estimate

MIB = 2**20
GIB = 2**30
MB = 10**6


def memory_command(
    config: options.ConfigFile = None,
    method: options.Method = None,
    devices: options.Devices = None,
    edges: options.Edges = None,
    seed: options.Seed = None,
    encoders: options.Encoders = None,
    preset: options.Preset = None,
    smoke: options.Smoke = False,
    sets: options.Set = None,
) -> None:
    """Estimate memory, computing and traffic of each kind of device; nothing is trained."""
    console = Console()
    chosen = options.configure(
        config, preset=preset, smoke=smoke, sets=sets, method=method, devices=devices,
        edges=edges, seed=seed, encoders=encoders,
    )  # fmt: skip
    with console.status("checking settings, assets and data"):
        from hffm_flower.errors import ConfigError
        from hffm_flower.session.memory import check_budgets, check_machine, estimates, machine
        from hffm_flower.session.preflight import check

        plan = check(chosen, fits=False)
    with console.status("playing a step of each kind of device"):
        here, found = machine(chosen), estimates(chosen, plan)
    console.print(
        f"[bold]{chosen.model.backbone}[/], batches of {chosen.train.batch_size}, "
        f"{chosen.train.local_epochs} local epochs, radio.device-gflop-s = "
        f"{chosen.radio.device_gflop_s:g}"
    )
    for kind, each in enumerate(found, start=1):
        console.print(f"  kind {kind}: {kind_of(each)}", highlight=False)
    console.print(memory_table(found))
    console.print(round_table(found))
    verdict = (
        f"{here.actors} processes at once: {here.needed(found) / GIB:.2f} GiB of "
        f"{here.memory / GIB:.2f} GiB here, with {here.process / MIB:.0f} MiB for each process and "
        f"{here.kept(found) / MIB:.0f} MiB of other devices' examples"
    )
    try:
        check_budgets(chosen, plan)
        check_machine(here, found)
    except ConfigError as error:
        console.print(f"{verdict}", highlight=False)
        raise chosen.locate(error) from error
    console.print(f"{verdict}; it fits", highlight=False)


def memory_table(found: Sequence[Estimate]) -> Table:
    """Memory of a device in training, by what takes it."""
    table = _table("memory of a device in training [MiB]")
    for column in ("frozen", "trained", "gradients", "AdamW", "active", "inputs", "total"):
        table.add_column(column, justify="right")
    for kind, each in enumerate(found, start=1):
        step = each.step
        parts = (
            step.frozen, step.trained, step.gradients, step.moments, step.activations,
            each.tokens, each.total,
        )  # fmt: skip
        sizes = (f"{n / MIB:.1f}" for n in parts)
        table.add_row(str(kind), str(len(each.devices)), *sizes)
    return table


def round_table(found: Sequence[Estimate]) -> Table:
    """What an edge round takes besides."""
    table = _table("an edge round of the one with most examples")
    for column in ("Gflop", "seconds", "sent each way [MB]", "feature cache [MB]"):
        table.add_column(column, justify="right")
    for kind, each in enumerate(found, start=1):
        table.add_row(
            str(kind), str(len(each.devices)), f"{each.flops / 1e9:.1f}",
            f"{each.seconds:.1f}", f"{each.message / MB:.2f}", f"{each.cache / MB:.1f}",
        )  # fmt: skip
    return table


def _table(title: str) -> Table:
    table = Table(title=title)
    table.add_column("kind", justify="right")
    table.add_column("devices", justify="right")
    return table


def kind_of(each: Estimate) -> str:
    """What the devices of a kind have in common."""
    more = [f"rank {each.rank}"] if each.rank else []
    more += [f"{each.experts} experts"] if each.experts else []
    return "; ".join([" ".join(each.modalities), " ".join(each.tasks), *more])
