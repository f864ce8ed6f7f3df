"""``hffm topology``: who stands where, who hears whom, and how well."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hffm_flower.errors import ConfigError


def topology_command(
    context: typer.Context,
    placement: Annotated[
        str, typer.Option(help="case-study, uniform, clustered or coordinates.")
    ] = "case-study",
    coordinates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV: kind, x_m, y_m, perhaps cluster."),
    ] = None,
    devices: Annotated[int, typer.Option(help="Devices in total.")] = 40,
    edges: Annotated[int, typer.Option(help="Edge servers.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of positions and channel.")] = 1,
    area_m: Annotated[float, typer.Option(help="Side of the square, in metres.")] = 5000.0,
    associate: Annotated[str, typer.Option(help="cluster or best-channel.")] = "cluster",
    links: Annotated[
        str, typer.Option(help="D2D links beside the spanning tree: radius, nearest or tree.")
    ] = "radius",
    reach: Annotated[
        float | None,
        typer.Option(help="Radius in metres (default 30), or number of nearest devices (2)."),
    ] = None,
    channel: Annotated[
        str, typer.Option(help="rayleigh, rician, log-distance, uma or umi.")
    ] = "rayleigh",
    tx_power_mw: Annotated[float, typer.Option(max=1e9, help="Power of a device, in mW.")] = 200.0,
    bandwidth_khz: Annotated[
        float, typer.Option(min=1e-3, max=1e9, help="Band of a cell, of a D2D link, in kHz.")
    ] = 1000.0,
    plot: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("topology.png"),
) -> None:
    """Draw servers, clusters, links by rate, heads and relay trees, as a PNG."""
    console = Console()
    from hffm_flower.placement import Site, place
    from hffm_flower.session.pictures import check_picture
    from hffm_flower.wireless.radio import Radio
    from hffm_flower.wireless.scene import survey

    check_picture(plot)
    if coordinates is not None:
        for name in ("placement", "devices", "edges", "area_m"):
            source = context.get_parameter_source(name)
            given = source is not None and source.name == "COMMANDLINE"
            if given and not (name == "placement" and placement == "coordinates"):
                raise ConfigError(
                    f"--{name.replace('_', '-')} has no effect with --coordinates, which says who "
                    "stands where; leave it out"
                )
        placement = "coordinates"
    radio = Radio(
        channel=channel, tx_power_w=tx_power_mw / 1e3, bandwidth_hz=bandwidth_khz * 1e3
    )  # fmt: skip
    site = Site(devices=devices, edges=edges, area_m=area_m, coordinates=coordinates)
    scene = survey(
        place(placement, site, seed), radio=radio, seed=seed, associate=associate, links=links,
        reach=reach,
    )  # fmt: skip
    with console.status("drawing"):
        from hffm_flower.session.topology_plot import draw_topology

        drawn = draw_topology(scene, f"{placement}, {channel} channel, seed {seed}", plot)
    topology = scene.topology
    table = Table(title=f"{topology.devices} devices, {topology.edges} edges, {placement}")
    for column in ("edge", "devices", "head", "links", "slowest uplink", "slowest link"):
        table.add_column(column, justify="right")
    edge_of = topology.edge_of()
    for edge, (members, head) in enumerate(zip(topology.clusters, scene.heads, strict=True)):
        inside = [p for p in scene.link_rate_bit_s if edge_of[p[0]] == edge]
        up = [float(scene.uplink_rate_bit_s[m]) for m in members]
        table.add_row(
            str(edge), str(len(members)), "-" if head is None else str(head),
            str(len(inside) // 2), _rate(up), _rate([scene.link_rate_bit_s[p] for p in inside]),
        )  # fmt: skip
    console.print(table)
    console.print(f"picture: {drawn}")


def _rate(rates_bit_s: list[float]) -> str:
    return f"{min(rates_bit_s) / 1e3:,.1f} kbit/s" if rates_bit_s else "-"
