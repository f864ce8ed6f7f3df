"""``run(config)``: check, work in a child process, and hand back the result."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hffm_flower.config import RunConfig
from hffm_flower.errors import HffmError, Interrupted
from hffm_flower.modules import ModuleKey, ModuleState
from hffm_flower.records import write_state
from hffm_flower.report import RoundReport
from hffm_flower.result import build, task_facts
from hffm_flower.runfiles import RunFiles
from hffm_flower.session.folders import take_folder
from hffm_flower.session.plan import Plan
from hffm_flower.session.plots import draw_curves
from hffm_flower.session.preflight import check
from hffm_flower.session.worker import Show, work

STATE = ".state"
"""Working state of a run, in its folder until it ends."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: Where its files are.
        result: Content of ``result.json``.
        rounds: One report per edge round.
    """

    folder: Path
    result: Mapping[str, object]
    rounds: tuple[RoundReport, ...]

    @property
    def summary(self) -> Mapping[str, object]:
        """Closing figures: ``mean_global``, ``per_task``, ``chance`` and more."""
        summary = self.result["summary"]
        assert isinstance(summary, Mapping)
        return summary

    @property
    def mean_global(self) -> float:
        """Mean IID accuracy over the classification tasks, after the last edge round."""
        return float(str(self.summary["mean_global"]))


def run(
    config: RunConfig | None = None, *, out: str | Path | None = None, show: Show | None = None
) -> RunResult:
    """Run a federation on this machine and return its result.

    Args:
        config: Settings; default: all defaults.
        out: Folder for the results; default: ``paths.out``, else ``runs/<date>-<time>``.
        show: Told of progress, for a display.

    Raises:
        ConfigError: A setting cannot work; nothing was started.
        AssetError: An asset is missing or altered; nothing was started.
        HffmError: The run ended early; the folder holds what was finished.
    """
    config = RunConfig.from_flwr((config or RunConfig()).to_flwr())
    plan = check(config)
    files = take_folder(config, None if out is None else Path(out), origin="out=")
    return execute(config, plan, files, show or (lambda event: None))


def execute(config: RunConfig, plan: Plan, files: RunFiles, show: Show) -> RunResult:
    """Work through a checked run in a child process.

    Raises:
        HffmError: The run ended early; its folder holds what was finished, and says why.
    """
    config = settled(config, files)
    try:
        work([config], files.root, show)
    except (HffmError, KeyboardInterrupt) as error:
        finish(config, plan, files, error)
        raise
    finish(config, plan, files)
    return RunResult(files.root, files.result(), tuple(files.rounds()))


def settled(config: RunConfig, files: RunFiles) -> RunConfig:
    """The settings with which a run works in ``files``: all paths absolute."""
    root, coordinates = files.root.resolve(), config.radio.coordinates
    return config.with_values(
        paths__state=str(root / STATE),
        paths__out=str(root),
        paths__cache=str(config.cache_dir().resolve()),
        radio__coordinates=str(Path(coordinates).expanduser().resolve()) if coordinates else "",
    )


def finish(
    config: RunConfig, plan: Plan, files: RunFiles, error: BaseException | None = None
) -> None:
    """Complete and release the folder of a run that has ended, by ``error`` if there is one."""
    if error is not None:
        _salvage(config, plan, files, error)
    _export_devices(config, plan, files, files.root / STATE)
    if files.rounds():
        draw_curves(files, plan)
    files.release()


def _salvage(config: RunConfig, plan: Plan, files: RunFiles, error: BaseException) -> None:
    """Write the result of a run whose process could not."""
    if not files.has_result():
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        tasks = task_facts(config.data.tasks, plan.profiles)
        result = build(
            config, files.rounds(), tasks,
            cycle=plan.schedule.cycle(), status="interrupted" if stopped else "failed",
            reason=str(error) or "stopped on request", 
            notes={"idle_devices": list(plan.idle), "clusters": plan.groups},
        )  # fmt: skip
        files.write_result(result)


def _export_devices(config: RunConfig, plan: Plan, files: RunFiles, state: Path) -> None:
    """Copy each device's own modules into the run's folder; drop the working state."""
    from clients.store import DeviceStore

    roots = [p for p in state.glob("*") if p.is_dir()]
    for profile in plan.profiles:
        own: dict[ModuleKey, ModuleState] = {}
        for root in roots:
            own = dict(DeviceStore(root, profile.index).read(config.rounds + 1)) or own
        write_state(files.device(profile.index), own)
    shutil.rmtree(state, ignore_errors=True)
