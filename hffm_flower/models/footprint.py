"""What a training step takes: memory and operations, found without doing it.

The step is played with tensors that have shapes and no content. Every storage that lives is
counted, so the peak is that of the real step: of any backbone, head or kind of adapter, with
inner states recomputed or not. What an allocator takes besides is not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hffm_flower.accelerator import mixed_precision
from hffm_flower.models.encoders.encoder import Stream, Tokens
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.modules import ModuleKey


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a device needs to train on batches of one task.

    Attributes:
        frozen: Weights of the backbone that are never trained [byte].
        trained: Weights of the device's modules [byte].
        gradients: Of those [byte].
        moments: AdamW's two, of those [byte].
        activations: What else lives at the peak of a step, inputs included [byte].
        flops: Operations of a step, per example [flop].
    """

    frozen: int
    trained: int
    gradients: int
    moments: int
    activations: int
    flops: float

    @property
    def total(self) -> int:
        """All memory of the step [byte]."""
        return self.frozen + self.trained + self.gradients + self.moments + self.activations


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, for as long as they live.

    Args:
        others: What is there already and not counted, such as weights: some operations only give
            another view of it.

    Attributes:
        now: Bytes alive.
        peak: Most bytes that were alive at once.
    """

    def __init__(self, others: Iterable[Tensor] = ()) -> None:
        cast(Any, super()).__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, int]
        self._known = weakref.WeakKeyDictionary()
        for tensor in others:
            self._known[tensor.untyped_storage()] = 0

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is gone."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = self._known[storage] = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count what it has made."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


def footprint(
    build: Callable[[FakeTensorMode], MultimodalModel],
    task: str,
    *,
    streams: Mapping[str, Stream],
    targets: Tensor,
    precision: str,
    recompute: bool = False,
) -> Footprint:
    """Memory and operations of a training step.

    Args:
        build: Makes the model; its frozen part within the mode, so that it has no content.
        task: Task of the batch.
        streams: Stream -> its tokens, as they go into the model.
        targets: Of the batch, real ones ``[B, ...]``.
        precision: As in ``train.precision``.
        recompute: As in `Backbone.fuse`.
    """
    cpu, batch = torch.device("cpu"), len(targets)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = build(mode)
    model.recompute = recompute
    _hollow(model.parts, mode)
    wanted = [p for p in model.parts.parameters() if p.requires_grad]
    trained = sum(p.nbytes for p in model.parts.parameters())
    gradients = sum(p.nbytes for p in wanted)
    frozen = sum(p.nbytes for p in model.frozen.parameters())

    def play() -> None:
        inputs = {
            name: Tokens(
                torch.zeros(batch, shape.tokens, shape.width),
                torch.ones(batch, shape.tokens, dtype=torch.bool),
            )
            for name, shape in streams.items()
        }
        target = mode.from_tensor(targets)
        with mixed_precision(cpu, precision):
            output = model(task, inputs)
        loss = model.head(task).loss(output.float(), target)
        del output
        torch.autograd.backward(loss)
        model.zero_grad(set_to_none=True)

    living = Living([*model.parameters(), *model.buffers()])
    with mode, living:
        play()
    # By itself: what counts operations keeps states alive that are to be computed again.
    # Attention as matrix products, since fused kernels of CPUs are not known to what counts.
    with mode, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        play()
    return Footprint(
        frozen=frozen,
        trained=trained,
        gradients=gradients,
        moments=2 * gradients,
        activations=max(0, living.peak - gradients),
        flops=counter.get_total_flops() / batch,
    )


def _hollow(module: nn.Module, mode: FakeTensorMode) -> None:
    """Take the content out of a module's tensors; their shapes stay."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                hollow = mode.from_tensor(parameter.detach())
                part._parameters[name] = nn.Parameter(hollow, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = mode.from_tensor(buffer)


def sent_bytes(model: MultimodalModel, keys: tuple[ModuleKey, ...]) -> int:
    """Tensors of modules, as they are sent: float32 [byte]."""
    return sum(4 * p.numel() for key in keys for p in model.trained(key).values())
