"""Modules that never leave a device: safetensors files, versioned by edge round.

They live neither in an actor nor in Flower's context, so that any process can continue
any device: ``<state>/<run>/devices/<index>/<t>.safetensors``. Round t reads the last
version published before it, so a round that is asked for twice begins twice from the
same bits. Two versions are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hffm_flower.errors import ProtocolError
from hffm_flower.modules import ModularState
from hffm_flower.records import read_state, write_bytes, write_state

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

    def _segment(self, t: int, segment: int, what: str) -> Path:
        return self.folder / "open" / f"{t}-{segment}-{what}.safetensors"

    def _file(self, t: int) -> Path:
        return self.folder / f"{t}.safetensors"
