"""Which experts each device and each edge holds: most fit within everybody's memory.

A binary program, solved exactly by HiGHS. The objective is that of FLEX-MoE,
arXiv 2512.23070: the sum of the fits of the experts that devices hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hffm_flower.errors import ConfigError
from hffm_flower.seeding import generator
from hffm_flower.topology import check_clusters

MEMORY_KEY: Final = "tree.memory-mib"
EDGE_KEY: Final = "tree.edge-memory-mib"
BYTES_PER_PARAMETER: Final = 16
FIT_STEPS: Final = 10**6
TIE_STEPS: Final = 2**14
BYTE_MIB: Final = 2.0**-20
LISTED: Final = 6

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who holds which experts.

    Attributes:
        held: Experts of each device, ascending.
        edges: Experts of each edge, ascending: those of its devices.
        proven: False if the time limit came before the proof that nothing fits better; then
            another machine may find another assignment.
    """

    held: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[int, ...], ...]
    proven: bool = True


def memory_mib(parameters: int) -> float:
    """Memory to train ``parameters`` [MiB]: weight, gradient, AdamW's two moments, float32."""
    return parameters * BYTES_PER_PARAMETER / 2**20


def assign(
    fit: ArrayLike,
    sizes_mib: ArrayLike,
    device_mib: ArrayLike,
    edges: Sequence[Sequence[int]],
    edge_mib: ArrayLike,
    copies: int,
    most: int = 0,
    *,
    names: Sequence[int] = (),
    time_limit_s: float = 60.0,
) -> Assignment:
    """Give experts to devices so that the sum of their fit is the largest possible.

    An expert that a device holds is held by its edge too. Fits count in millionths of the
    largest one. Among equally good assignments, a fixed pseudo-random addition to the fit of
    each (device, expert) decides, above 0 and at most one millionth of the largest: so the sum
    is the largest to within 2 K J millionths, and a device is left without an expert only if
    none that its edge holds or has room for fits into it. Budgets are kept to one byte.

    Args:
        fit: How well expert j suits device k ``[K, J]``, >= 0.
        sizes_mib: Memory of each expert ``[J]`` [MiB], > 0.
        device_mib: Budget of each device ``[K]`` [MiB]; may be infinite.
        edges: Devices of each edge; every device has one edge.
        edge_mib: Budget of each edge [MiB]; may be infinite.
        copies: Devices that hold each expert, at least.
        most: Experts on one device, at most; 0: no limit.
        names: What messages call the devices; default: 0 to K - 1.
        time_limit_s: For the assignment, and again for the shortfall [s].

    Raises:
        ConfigError: Unusable input; or the budgets are too small, with the least memory to
            add and where.
    """
    fits = _array(fit, "fit", 2)
    if not fits.size or not np.isfinite(fits).all():
        raise ConfigError(
            f"fit has the shape {list(fits.shape)}; needed: [devices, experts], both >= 1, finite"
        )
    program = _Program(
        _array(sizes_mib, "sizes of experts", 1),
        _array(device_mib, "devices' memory", 1, key=MEMORY_KEY),
        tuple(tuple(members) for members in edges),
        _array(edge_mib, "edges' memory", 1, key=EDGE_KEY),
        copies,
        most,
        time_limit_s,
        tuple(names) or tuple(range(len(fits))),
    )
    program.check(*fits.shape)
    steps = np.rint(fits.ravel() / max(fits.max(), np.finfo(float).tiny) * FIT_STEPS)
    ties = generator(0, "assignment").integers(1, TIE_STEPS, steps.size, endpoint=True)
    best = program.solve(steps + ties / TIE_STEPS)
    if best is None:
        raise program.shortage()
    held = program.held(best[0])
    unions = [sorted({j for k in members for j in held[k]}) for members in program.edges]
    return Assignment(held, tuple(map(tuple, unions)), proven=best[1])


@dataclass(frozen=True, slots=True)
class _Program:
    """The constraints. Variables: x (K * J), y (budgeted edges * J), maybe extra memory."""

    sizes: Numbers
    device_mib: Numbers
    edges: tuple[tuple[int, ...], ...]
    edge_mib: Numbers
    copies: int
    most: int
    time_limit_s: float
    names: tuple[int, ...]

    def check(self, devices: int, experts: int) -> None:
        """Refuse what cannot be or what no memory could satisfy."""
        for what, array, length, key in (
            ("sizes of experts", self.sizes, experts, ""),
            ("devices' memory", self.device_mib, devices, MEMORY_KEY),
            ("edges' memory", self.edge_mib, len(self.edges), EDGE_KEY),
        ):
            if len(array) != length:
                raise ConfigError(f"{what}: {len(array)} numbers, needed: {length}", key=key)
        if not (np.isfinite(self.sizes) & (self.sizes > 0)).all():
            raise ConfigError("sizes of experts: every one must be above 0 and finite")
        check_clusters(self.edges, devices=devices, edges=len(self.edges))
        if not 1 <= self.copies <= devices:
            raise ConfigError(
                f"{self.copies} copies of each expert; allowed: 1..{devices}, the devices"
            )
        if self.most < 0:
            raise ConfigError(f"at most {self.most} experts per device; allowed: 0 (all), 1, ...")
        if self.most and self.most * devices < self.copies * experts:
            raise ConfigError(
                f"at most {self.most} experts on each of {devices} devices make room for "
                f"{self.most * devices}; {experts} experts with {self.copies} copies need "
                f"{self.copies * experts}: at most {-(-self.copies * experts // devices)} or more",
                key="model.experts-held",
            )
        if not self.time_limit_s > 0:
            raise ConfigError(f"time limit {self.time_limit_s} s; it must be above 0")

    def held(self, x: Numbers) -> tuple[tuple[int, ...], ...]:
        """Experts of each device."""
        table = x.reshape(len(self.device_mib), len(self.sizes))
        return tuple(tuple(np.flatnonzero(row).tolist()) for row in table)

    def solve(self, worth: Numbers) -> tuple[Numbers, bool] | None:
        """Assignment x ``[K * J]`` of the largest worth, if that is proven; None: none fits."""
        from scipy.optimize import LinearConstraint

        matrix, upper = self._rows(extra=False)
        cost = np.zeros(matrix.shape[1])
        cost[: worth.size] = -worth
        rows = [LinearConstraint(matrix, -np.inf, upper)]
        fits = self.sizes[None] <= self.device_mib[:, None] + BYTE_MIB
        most = np.ones(matrix.shape[1])
        most[: worth.size] = fits.ravel()
        return self._run(cost, np.ones(len(cost)), most, rows, worth.size)

    def shortage(self) -> ConfigError:
        """What is missing at least, and where; of edges only, it is their budget's error."""
        from scipy.optimize import LinearConstraint

        matrix, upper = self._rows(extra=True)
        budgets = len(self._tight(self.device_mib)) + len(self._tight(self.edge_mib))
        cost, whole = np.zeros(matrix.shape[1]), np.ones(matrix.shape[1])
        cost[-budgets:], whole[-budgets:] = 1.0, 0.0
        bound = np.where(whole, 1.0, np.inf)
        cells = len(self.device_mib) * len(self.sizes)
        rows = [LinearConstraint(matrix, -np.inf, upper)]
        solved = self._run(cost, whole, bound, rows, cells)
        assert solved is not None  # with memory enough, `check` leaves nothing to fail
        held = self.held(solved[0])
        unions = [sorted({j for k in members for j in held[k]}) for members in self.edges]
        missing = [
            (max(0.0, float(self.sizes[list(js)].sum()) - float(budget)), f"{what} {i}")
            for what, indices, own, budgets_mib in (
                ("device", self.names, held, self.device_mib),
                ("edge", range(len(unions)), unions, self.edge_mib),
            )
            for i, js, budget in zip(indices, own, budgets_mib, strict=True)
        ]
        missing = [m for m in missing if m[0] > BYTE_MIB]
        of_edges = all(name.startswith("edge") for _, name in missing)
        key = EDGE_KEY if of_edges else MEMORY_KEY
        return ConfigError(self._words(missing, proven=solved[1]), key=key)

    def _words(self, missing: Sequence[tuple[float, str]], *, proven: bool) -> str:
        low, high = float(self.sizes.min()), float(self.sizes.max())
        size = f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
        need = self.copies * float(self.sizes.sum())
        room = float(self.device_mib.sum())
        each = np.cumsum(np.sort(self.sizes))[: self.most or None]
        whole = sum(int((each <= m + BYTE_MIB).sum()) for m in self.device_mib)
        budgets = zip(self.names, self.device_mib, strict=True)
        small = [str(k) for k, m in budgets if m + BYTE_MIB < low]
        if len(small) > LISTED:
            small[LISTED:] = [f"{len(small) - LISTED} more"]
        where = [f"{name} {mib:.6g} MiB" for mib, name in missing[:LISTED]]
        if len(missing) > LISTED:
            where.append(f"{len(missing) - LISTED} more")
        total = math.fsum(mib for mib, _ in missing)
        return (
            f"{len(self.sizes)} experts of {size} MiB on at least {self.copies} devices each need "
            f"{need:.6g} MiB ({self.copies * len(self.sizes)} copies); the devices' budgets hold "
            f"{f'{room:.6g} MiB' if room < math.inf else 'any amount'} ({whole} copies): "
            f"{'' if proven else 'no more than '}{total:.6g} MiB short ({', '.join(where)})"
            + (f"; too small for any expert: devices {', '.join(small)}" if small else "")
        )

    def _tight(self, budgets: Numbers) -> NDArray[np.intp]:
        """Those that cannot hold all experts."""
        return np.flatnonzero(budgets + BYTE_MIB < self.sizes.sum())

    def _rows(self, *, extra: bool) -> tuple[Any, Numbers]:
        """Matrix and right-hand side of ``matrix @ variables <= upper``, memory in KiB.

        KiB, so that one byte is far above the solver's absolute tolerance of 1e-6.
        """
        from scipy import sparse

        devices, experts = len(self.device_mib), len(self.sizes)
        small, tight = self._tight(self.device_mib), self._tight(self.edge_mib)
        sizes = 1024 * self.sizes[None]
        one, each = sparse.eye_array(devices, format="csr"), sparse.eye_array(experts)
        x_most = sparse.kron(one, np.ones((1, experts)))
        x_device = sparse.kron(one[small], sizes)
        x_copies = sparse.kron(np.ones((1, devices)), -each)
        y_edge = sparse.kron(sparse.eye_array(len(tight)), sizes)
        pairs = [(k, f) for f, e in enumerate(tight) for k in self.edges[e]]
        of_device = one[[k for k, _ in pairs]]
        of_edge = sparse.eye_array(len(tight), format="csr")[[f for _, f in pairs]]
        x_link, y_link = sparse.kron(of_device, each), sparse.kron(of_edge, -each)
        a, b = (-sparse.eye_array(len(n)) if extra else None for n in (small, tight))
        slack = 0.0 if extra else BYTE_MIB
        blocks: list[tuple[list[Any], Numbers]] = [
            ([x_copies, None, None, None], np.full(experts, -self.copies)),
            ([x_most, None, None, None], np.full(devices, self.most or experts)),
            ([x_device, None, a, None], 1024 * (self.device_mib[small] + slack)),
            ([None, y_edge, None, b], 1024 * (self.edge_mib[tight] + slack)),
            ([x_link, y_link, None, None], np.zeros(len(pairs) * experts)),
        ]
        columns = 4 if extra else 2
        kept = [(row[:columns], upper) for row, upper in blocks if len(upper)]
        used = [c for c in range(columns) if any(row[c] is not None for row, _ in kept)]
        matrix = sparse.block_array([[row[c] for c in used] for row, _ in kept], format="csr")
        return matrix, np.concatenate([upper for _, upper in kept])

    def _run(
        self, cost: Numbers, whole: Numbers, upper: Numbers, rows: Sequence[Any], cells: int
    ) -> tuple[Numbers, bool] | None:
        """The best x ``[cells]``, and if that is proven; None: nothing fits."""
        from scipy.optimize import Bounds, milp

        found = milp(
            cost,
            integrality=whole,
            bounds=Bounds(0, upper),
            constraints=rows,
            options={"mip_rel_gap": 0.0, "time_limit": self.time_limit_s},
        )
        if found.x is not None:
            return np.rint(found.x[:cells]), found.status == 0
        if found.status == 2:
            return None
        raise ConfigError(
            f"no assignment of experts after {self.time_limit_s:g} s: {found.message}"
        )


def _array(values: ArrayLike, what: str, dimensions: int, *, key: str = "") -> Numbers:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}: not numbers ({error})", key=key) from error
    if array.ndim != dimensions:
        raise ConfigError(f"{what}: {array.ndim} dimensions, needed: {dimensions}", key=key)
    if not (array >= 0).all():
        raise ConfigError(f"{what}: every number must be >= 0, and none NaN", key=key)
    return array
