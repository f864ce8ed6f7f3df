"""Constants of the published case study, and its errata as switches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final, Self

from hffm_flower.errors import ConfigError, one_of
from hffm_flower.wireless.units import not_negative, positive


class Fix(StrEnum):
    """An erratum of the case study, mended."""

    NOISE_HZ = "noise-hz"
    """The noise fills the band in Hz; published: the number of kHz is taken as Hz."""
    UNIT_FADING = "unit-fading"
    """Fading has mean power 1; published: 2."""
    HEAD_UPLINK = "head-uplink"
    """Under D2D the head's own uplink is priced; published: the mean of its cluster's."""
    EQUAL_POWER = "equal-power"
    """Energy counts the power that the rate was computed with; published: another one."""
    EQUAL_BANDWIDTH = "equal-bandwidth"
    """D2D has the uplink's bandwidth; published: eight times as much."""
    DOWNLINK = "downlink"
    """The model travels down too, in time and energy; published: only inside clusters."""
    COMPUTE = "compute"
    """Training takes time and energy; published: none."""
    TRUE_PAYLOAD = "true-payload"
    """The bytes that a device of this project sends; published: 6 MB."""


MODES: Final[Mapping[str, frozenset[Fix]]] = {
    "published": frozenset(),
    "corrected": frozenset(Fix),
}
"""Sets of fixes with a name."""


def fixes_of(mode: str, names: Iterable[str] = ()) -> frozenset[Fix]:
    """Fixes of the mode, and those named besides.

    Raises:
        ConfigError: Unknown mode or fix.
    """
    chosen = MODES[one_of("mode", mode, MODES)]
    return chosen | {Fix(one_of("fix", name, map(str, Fix))) for name in names}


@dataclass(frozen=True, slots=True)
class CaseStudy:
    """Constants of the case study; powers as published differ in rate and energy.

    The last five are not in the publication: a device's payload as this project sends it
    (mean over the training devices of a default run), and an assumed edge round of local
    training on an assumed processor.
    """

    payload_bits: float = 48e6
    uplink_hz: float = 1e6
    d2d_hz: float = 8e6
    uplink_rate_power_w: float = 1.0
    d2d_rate_power_w: float = 0.2
    uplink_energy_power_w: float = 0.6
    d2d_energy_power_w: float = 0.6
    cloud_energy_power_w: float = 0.8
    reference_gain_db: float = -30.0
    exponent: float = 3.0
    noise_dbm_hz: float = -174.0
    backhaul_rate_bit_s: float = 4e6
    backhaul_delay_s: float = 0.1
    link_radius_m: float = 30.0
    edge_only_rounds: float = 200.0
    true_payload_bits: float = 8 * 3_577_335
    training_flops: float = 2e10
    flops_per_s: float = 1e10
    cpu_hz: float = 1e9
    kappa: float = 1e-28

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("_db", "_dbm_hz")):
                if not math.isfinite(value):
                    raise ConfigError(f"{field.name} = {value}; it must be finite")
            elif field.name in {"backhaul_delay_s", "link_radius_m", "training_flops", "kappa"}:
                not_negative(field.name, value)
            else:
                positive(field.name, value)
        if self.edge_only_rounds < 1:
            raise ConfigError(f"edge_only_rounds = {self.edge_only_rounds:g}; it must be >= 1")

    @classmethod
    def of(cls, items: Iterable[str]) -> Self:
        """Defaults with ``name=value`` items changed; dashes or underscores.

        Raises:
            ConfigError: Unknown name, or a value that is not allowed.
        """
        names = [f.name.replace("_", "-") for f in fields(cls)]
        values = {}
        for item in items:
            name, _, text = item.partition("=")
            key = one_of("constant", name.replace("_", "-"), names)
            try:
                values[key.replace("-", "_")] = float(text)
            except ValueError as error:
                raise ConfigError(f"{item!r}: expected {key}=NUMBER") from error
        return cls(**values)
