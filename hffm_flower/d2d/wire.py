"""Plans as compact JSON: modules by number, equal steps in a row once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any, Final, TypeVar

from hffm_flower.d2d.plan import Delivery, PeerStep, Plan
from hffm_flower.errors import ConfigError
from hffm_flower.modules import ModuleKey

T = TypeVar("T")
MOST_STEPS: Final = 1_000_000
"""Steps of the longest plan that is read."""


def plan_to_json(plan: Plan) -> str:
    """Text of ``plan``; equal plans give equal text."""
    runs = [(step, len(list(run))) for step, run in itertools.groupby(plan.steps)]
    shared = [s for step, _ in runs for out in step.sends.values() for s in out.values()]
    keys = sorted(
        {
            *(key for hop in plan.down for key in hop.keys),
            *(key for shares in shared for key in shares),
            *(key for held in plan.uploads.values() for key in held),
            *plan.groups,
        }
    )
    number = {key: n for n, key in enumerate(keys)}

    def numbers(some: Iterable[ModuleKey]) -> list[int]:
        return [number[key] for key in some]

    def sends(step: PeerStep) -> list[object]:
        rows: list[object] = []
        for i, out in sorted(step.sends.items()):
            for j, shares in sorted(out.items()):
                by_share: dict[float, list[int]] = {}
                for key, share in sorted(shares.items()):
                    by_share.setdefault(share, []).append(number[key])
                rows.append([i, j, list(by_share.items())])
        return rows

    return json.dumps(
        {
            "kind": plan.kind,
            "modules": [str(key) for key in keys],
            "down": [[h.src, h.dst, numbers(h.keys), h.step] for h in plan.down],
            "steps": [[count, sends(step)] for step, count in runs],
            "uploads": [[d, numbers(held)] for d, held in sorted(plan.uploads.items())],
            "groups": [[number[key], parts] for key, parts in sorted(plan.groups.items())],
            "segments": plan.segments,
            "summing": plan.summing,
        },
        separators=(",", ":"),
    )


def plan_from_json(text: str) -> Plan:
    """Plan of a text by `plan_to_json`.

    Raises:
        ConfigError: It is no plan, or its shares do not conserve mass.
        ModuleError: It names something that is no module key.
    """
    try:
        plan = _read(json.loads(text))
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise ConfigError(f"not a D2D plan: {type(error).__name__}: {error}") from None
    for step in plan.distinct_steps():
        step.check()
    return plan


def _read(fields: Any) -> Plan:
    keys = [ModuleKey.parse(_a(str, key)) for key in fields["modules"]]

    def named(numbers: Any) -> tuple[ModuleKey, ...]:
        return tuple(keys[_whole(n)] for n in numbers)

    def step(rows: Any) -> PeerStep:
        sends: dict[int, dict[int, dict[ModuleKey, float]]] = {}
        for i, j, by_share in rows:
            sends.setdefault(_whole(i), {})[_whole(j)] = {
                key: float(share) for share, numbers in by_share for key in named(numbers)
            }
        return PeerStep(sends)

    counts = [_whole(count) for count, _ in fields["steps"]]
    if sum(counts) > MOST_STEPS:
        raise ConfigError(f"a D2D plan of {sum(counts)} steps; at most {MOST_STEPS} are read")
    return Plan(
        kind=_a(str, fields["kind"]),
        down=tuple(
            Delivery(_a(int, src), _whole(dst), named(numbers), _whole(n))
            for src, dst, numbers, n in fields["down"]
        ),
        steps=tuple(
            itertools.chain.from_iterable(
                itertools.repeat(step(rows), n)
                for n, (_, rows) in zip(counts, fields["steps"], strict=True)
            )
        ),
        uploads={_whole(d): named(numbers) for d, numbers in fields["uploads"]},
        groups={
            keys[_whole(n)]: tuple(tuple(map(_whole, part)) for part in parts)
            for n, parts in fields["groups"]
        },
        segments=_whole(fields["segments"]),
        summing=_a(bool, fields["summing"]),
    )


def _a(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _whole(value: Any) -> int:
    if _a(int, value) < 0:
        raise ValueError(f"{value} is below 0")
    return int(value)
