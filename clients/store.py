"""What a device keeps between messages: modules that never leave it, its own last update.

Both are safetensors files. Modules are versioned by edge round.

They live neither in an actor nor in Flower's context, so that any process can continue
any device: ``<state>/<run>/devices/<index>/<t>.safetensors``. Round t reads the last
version published before it, so a round that is asked for twice begins twice from the
same bits. Two versions are kept. ``own/<t>.safetensors`` is the device's own update of a
round, until the edge has published the round: that is, until the next one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file, save
from torch import Tensor

from hffm_flower.errors import ModuleError, ProtocolError
from hffm_flower.modules import ModularState, ModularUpdate, ModuleKey
from hffm_flower.records import from_bytes, read_state, write_bytes, write_state

KEPT = 2


class DeviceStore:
    """One device's own modules.

    Args:
        root: ``<state>/<run>``.
        index: Index of the device.
    """

    def __init__(self, root: Path, index: int) -> None:
        self.folder = root / "devices" / str(index)

    def versions(self) -> list[int]:
        """Edge rounds with a published version, ascending."""
        return sorted(int(p.stem) for p in self.folder.glob("*.safetensors"))

    def read(self, before: int) -> ModularState:
        """Last version published before edge round ``before``; nothing if there is none."""
        older = [t for t in self.versions() if t < before]
        return read_state(self._file(older[-1])) if older else {}

    def publish(self, state: ModularState, t: int) -> None:
        """Save ``state`` as the version of edge round ``t``, whole or not at all."""
        write_state(self._file(t), state)
        for old in [v for v in self.versions() if v <= t][:-KEPT]:
            self._file(old).unlink(missing_ok=True)

    def save_segment(
        self, t: int, segment: int, progress: Mapping[str, Tensor], own: ModularState
    ) -> None:
        """Leave a round's training open after ``segment``, whole or not at all.

        Args:
            t: Edge round.
            segment: The segment that has ended; the next one reads this.
            progress: `Progress.tensors` of the trainer.
            own: Modules that never leave the device, as they are now.
        """
        write_state(self._segment(t, segment, "own"), own)
        write_bytes(self._segment(t, segment, "progress"), save(dict(progress)))
        for old in (self.folder / "open").glob("*.safetensors"):
            if int(old.stem.split("-")[0]) < t:
                old.unlink(missing_ok=True)

    def read_segment(self, t: int, segment: int) -> tuple[dict[str, Tensor], ModularState]:
        """What `save_segment` left: the progress, and the device's own modules.

        Raises:
            ProtocolError: There is nothing, or it is damaged.
        """
        try:
            progress = load_file(self._segment(t, segment, "progress"))
        except (OSError, SafetensorError) as error:
            raise ProtocolError(
                f"segment {segment} of edge round {t} is not on this device: {error}"
            ) from error
        return progress, read_state(self._segment(t, segment, "own"))

    def keep(self, update: ModularUpdate, t: int) -> None:
        """Save the device's own update of edge round ``t``, whole or not at all.

        The edge may ask for it until it has published the round; the one before is forgotten.
        """
        arrays = {f"{k}/{n}": a for k, s in update.state.items() for n, a in s.items()}
        mass = json.dumps({str(key): mass for key, mass in update.mass.items()})
        write_bytes(self._own(t), save_arrays(arrays, {"mass": mass}))
        for old in self._own(t).parent.glob("*.safetensors"):
            if old != self._own(t):
                old.unlink(missing_ok=True)

    def kept(self, t: int) -> ModularUpdate:
        """The update that `keep` saved in edge round ``t``.

        Raises:
            ProtocolError: There is none, or it is damaged.
        """
        path = self._own(t)
        try:
            with safe_open(path, "np") as file:
                told = json.loads(file.metadata()["mass"])
            mass = {ModuleKey.parse(key): float(value) for key, value in told.items()}
            return ModularUpdate(from_bytes(path.read_bytes()), mass)
        except (
            OSError, SafetensorError, ModuleError, ValueError, KeyError, TypeError, AttributeError,
        ) as error:  # fmt: skip
            raise ProtocolError(f"no update of edge round {t} is kept here: {error}") from error

    def _own(self, t: int) -> Path:
        return self.folder / "own" / f"{t}.safetensors"

    def _segment(self, t: int, segment: int, what: str) -> Path:
        return self.folder / "open" / f"{t}-{segment}-{what}.safetensors"

    def _file(self, t: int) -> Path:
        return self.folder / f"{t}.safetensors"
