"""`snapshot`: the state of a moment in CPU memory, which no later step changes.

Notable:
- What is shared stays shared: tensors that view one storage do so in the snapshot, and a file written of
  it is byte for byte that of the original.
- Each storage is copied once, as a whole, as it would be written. From a GPU all copies run at once into
  page-locked memory, which torch keeps for the next time, and are waited for together.
- Of a sharded tensor (DTensor) this rank's part is copied; the copy names the same mesh. No rank is asked.
- Tensors of other kinds (sparse, quantized) are copied one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def snapshot(state: Any) -> Any:
    """A copy of plain data and tensors, all tensors on the CPU.

    Args:
        state: nested mappings, lists and tuples; what else is in it must be fit for `copy.deepcopy`.
    """
    storages: dict[int, Tensor] = {}
    copies: dict[int, Any] = {}
    devices = set()
    for tensor in _tensors(state):
        if id(tensor) not in copies:
            copies[id(tensor)] = _copied(tensor.detach(), storages)
            devices.add(tensor.device)
    for device in devices:
        if device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            event.synchronize()
    return copy.deepcopy(state, copies)  # looks up what was copied already


def _copied(tensor: Tensor, storages: dict[int, Tensor]) -> Tensor:
    if isinstance(tensor, DTensor):
        # `from_local` would move the part to the mesh's device
        return DTensor(_copied(tensor.to_local(), storages), tensor._spec, requires_grad=False)
    is_plain = type(tensor) is Tensor and tensor.layout == torch.strided
    if not is_plain or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return tensor.to("cpu", copy=True)
    storage = tensor.untyped_storage()
    if (key := storage._cdata) not in storages:
        source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
        target = torch.empty_like(source, device="cpu", pin_memory=tensor.is_cuda)
        storages[key] = target.copy_(source, non_blocking=True)
    view = torch.empty(0, dtype=tensor.dtype)
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    return view.set_(storages[key].untyped_storage(), *place)


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _tensors(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _tensors(value)
