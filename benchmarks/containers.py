"""docker-compose.yml: time until it trains, memory of its containers, and each killed in mid-run.

Run as root, from the checkout, with the images built:
``python -m benchmarks.containers [--compose COMPOSE] [--rounds N] [SERVICE...]``. One tree is left
alone, and in one for each service (by default every one) the first process of its container is
killed by SIGKILL as soon as edge round 2 is over; the engine starts the container again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from hffm_flower.runfiles import RunFiles
from tests.support.containers import DEVICES, EDGES, UP_S, Stack, said, what_is_missing
from tests.support.deployment import ROOT

NODES = ("cloud", *EDGES, *DEVICES)
TICK_S = 0.5
DEADLINE_S = 60
AGAIN_S = 300.0
KILL_AFTER = 2
ROUND = re.compile(r"round (\d+)/")


@dataclass
class Seen:
    """What happened when [s after up], what came of it, and memory by service [MiB]."""

    at_s: dict[str, float] = field(default_factory=dict)
    code: int = 0
    accuracy: float | None = None
    missed: dict[int, list[str]] = field(default_factory=dict)
    model: bytes = b""
    memory: dict[str, tuple[str, float]] = field(default_factory=dict)


def follow(stack: Stack, kill: str, seen: Seen, begun: float) -> None:
    """Note when what is first true of a run, until it ends; kill a container after a round."""
    since = int(time.time())
    rounds: set[int] = set()
    deadline = begun + UP_S
    while time.monotonic() < deadline:
        now = time.monotonic() - begun
        log = said("docker", "logs", "--since", str(since), stack.container("submit"))
        for t in {int(t) for t in ROUND.findall(log.stdout + log.stderr)} - rounds:
            seen.at_s[f"round {t}"] = now
            rounds.add(t)
        if kill and KILL_AFTER in rounds and "killed" not in seen.at_s:
            os.kill(int(stack.about(kill, "{{.State.Pid}}")), signal.SIGKILL)
            seen.at_s["killed"] = now
        elif "killed" in seen.at_s and "healthy again" not in seen.at_s:
            state = stack.about(kill, "{{.RestartCount}} {{.State.Health.Status}}")
            if state == "1 healthy":
                seen.at_s["healthy again"] = now
        if stack.about("submit", "{{.State.Status}}") == "exited":
            seen.at_s["submit ends"] = now
            return
        time.sleep(TICK_S)
    raise SystemExit(f"no end after {UP_S:.0f} s")


def memory(stack: Stack) -> dict[str, tuple[str, float]]:
    """Of each node: what it uses now, as the engine says, and its peak [MiB]."""
    found = {}
    for service in NODES:
        name = stack.container(service)
        used = said("docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", name).stdout
        peak = float("nan")
        for path in ("memory/memory.max_usage_in_bytes", "memory.peak"):
            with contextlib.suppress(OSError, ValueError):
                text = said("docker", "exec", name, "cat", f"/sys/fs/cgroup/{path}").stdout
                peak = int(text) / 2**20
        found[service] = used.partition(" /")[0].strip(), peak
    return found


def tree(compose: str, rounds: int, kill: str, folder: Path) -> Seen:
    """Bring a tree up, kill a container if one is named, and say what came of the run."""
    settings = folder / "run.toml"
    usual = (ROOT / "deploy" / "compose" / "run.toml").read_text(encoding="utf-8")
    changed = re.sub(r"deadline-s = \S+", f"deadline-s = {DEADLINE_S}", usual)
    settings.write_text(re.sub(r"(?m)^rounds = \d+", f"rounds = {rounds}", changed))
    seen = Seen()
    with Stack(compose, f"hffm-bench-{kill or 'none'}", HFFM_SETTINGS=str(settings)) as stack:
        begun = time.monotonic()
        stack.up()
        seen.at_s["cloud healthy, run handed in"] = time.monotonic() - begun
        follow(stack, kill, seen, begun)
        seen.code = int(stack.about("submit", "{{.State.ExitCode}}"))
        if kill and "healthy again" not in seen.at_s:
            until = time.monotonic() + AGAIN_S
            while stack.about(kill, "{{.RestartCount}} {{.State.Health.Status}}") != "1 healthy":
                if time.monotonic() > until:
                    raise SystemExit(f"{kill} is not healthy {AGAIN_S:.0f} s after its run")
                time.sleep(TICK_S)
            seen.at_s["healthy again"] = time.monotonic() - begun
        if seen.code:  # the run is lost; another one, at once
            again = time.monotonic()
            stack.up("submit")
            if code := stack.ended():
                told = stack("logs", "submit")
                raise SystemExit(f"a run after the lost one: code {code}\n{told}")
            seen.at_s["a new run"] = time.monotonic() - again
        run = RunFiles(stack.runs(folder / "runs")[-1])
        summary = run.result()["summary"]
        seen.accuracy = summary["mean_global"] if isinstance(summary, dict) else None
        seen.missed = {r.t: sorted(r.dropped) for r in run.rounds() if r.dropped or r.void}
        seen.model = (run.root / "model.safetensors").read_bytes()
        seen.memory = {} if kill else memory(stack)
    return seen


def main() -> None:
    """Print what was seen, tree by tree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--compose", default="docker-compose")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("kill", nargs="*", metavar="SERVICE", help=", ".join(NODES))
    asked = parser.parse_args()
    if missing := what_is_missing(asked.compose):
        raise SystemExit(missing)
    calm: Seen | None = None
    for kill in ("", *(asked.kill or NODES)):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            seen = tree(asked.compose, asked.rounds, kill, Path(folder))
        calm = calm or seen
        print(f"killed: {kill or 'nothing'}; submit ends with code {seen.code}")
        for what, at_s in seen.at_s.items():
            print(f"  {at_s:6.1f} s  {what}")
        bits = "the same bits" if seen.model == calm.model else "another model"
        print(
            f"  mean accuracy {seen.accuracy}, {bits}; missed, by round: {seen.missed}", flush=True
        )
        for service, (used, peak) in seen.memory.items():
            print(f"  {service}: {used}, peak {peak:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
