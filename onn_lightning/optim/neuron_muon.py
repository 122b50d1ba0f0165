"""`NeuronMuon`: Muon that leaves the rows of neurons that did not fire alone.

Notable:
- The rows that fire are moved as if they were the whole matrix: their momentum alone enters the Newton-Schulz
  iteration, so that they are orthogonalised among themselves, and their number sets the size of the update.
  Resting rows keep every bit, of their momentum too.
- The iteration is written out, since torch's works on whole parameters alone; a matrix all of whose rows fire
  moves as with `torch.optim.Muon`, bit for bit.
- On the CPU the firing rows are gathered and moved by compiled loops. On accelerators a mask chooses, resting
  rows enter the iteration as zeros (which is the same but for rounding), and the host never waits.
- Sharded matrices (DTensor) are gathered for the iteration, in bfloat16; every process keeps its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from onn_lightning.optim import row_formulas
from onn_lightning.optim.firing import FiringRows, LocalMasks, evaluated, local_part
from onn_lightning.optim.row_kernels import fits, momentum_rows, move_rows


class NeuronMuon(FiringRows, torch.optim.Muon):
    """Muon (Jordan et al. 2024) with updates of AdamW's size (Liu et al. 2025, arXiv 2502.16982).

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        momentum: of the moving average; Nesterov's look ahead is always on.
        weight_decay: decoupled decay.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the masks of `set_firing` serve it alone.

        Args:
            closure: reevaluates the model and returns the loss.
        """
        loss = evaluated(closure)
        masks, found_inf = self._take_firing(), self._take_found_inf()
        moves = None if found_inf is None else found_inf == 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group, masks, moves)
        return loss

    def _move(
        self, parameter: nn.Parameter, group: dict[str, Any], masks: LocalMasks, moves: Tensor | None
    ) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad, memory_format=torch.preserve_format)
        tensors = (parameter.detach(), parameter.grad, state["momentum_buffer"])
        param, grad, buffer = (local_part(tensor) for tensor in tensors)
        mask, momentum = masks.part(parameter), group["momentum"]
        sharded = parameter if isinstance(parameter, DTensor) else None
        if mask is not None and sharded is None and fits(param, grad, buffer):
            if moves is None or moves:
                _move_rows(masks.numbers(mask), param, grad, buffer, group)
            return
        count: int | Tensor = len(parameter)
        if mask is None:
            moved = buffer if moves is None else buffer.clone()
            update = grad.lerp(moved.lerp_(grad, 1 - momentum), momentum)
            if moves is not None:
                buffer.copy_(torch.where(moves, moved, buffer))
        else:
            mask = mask if moves is None else mask & moves
            update = row_formulas.momentum(buffer, grad, mask, momentum)
            count = _firing_count(masks.whole(parameter), param.device)
        if sharded is None:
            update = _orthogonalised(update, group)
        else:
            update = _own_rows(_orthogonalised(_gathered(update, sharded), group), sharded)
        lr = _learning_rate(group)
        decay, step_size = 1 - lr * group["weight_decay"], -lr * _size(count, parameter.shape[1])
        if mask is not None:
            row_formulas.choose_rows(param, param * decay + update.to(param.dtype) * step_size, mask)
            return
        moved = param if moves is None else param.clone()
        if isinstance(step_size, Tensor):
            moved.mul_(decay).addcmul_(update.to(param.dtype), step_size)
        else:
            moved.mul_(decay).add_(update, alpha=step_size)
        if moves is not None:
            param.copy_(torch.where(moves, moved, param))


def _move_rows(rows: Any, param: Tensor, grad: Tensor, buffer: Tensor, group: dict[str, Any]) -> None:
    """Move some rows of a matrix on the CPU as if there were no others."""
    if not len(rows):
        return
    update = torch.zeros(_few_heights(len(rows), len(param)), param.shape[1], dtype=param.dtype)
    momentum_rows(rows, buffer, grad, update[: len(rows)], group["momentum"])
    update = _orthogonalised(update, group).to(param.dtype, memory_format=torch.contiguous_format)
    lr = float(group["lr"])
    decay, step_size = 1 - lr * group["weight_decay"], -lr * _size(len(rows), param.shape[1])
    move_rows(rows, param, update[: len(rows)], decay, step_size)


def _few_heights(rows: int, all_rows: int) -> int:
    """Rows, rounded up to one of about 16 numbers; those to spare are zeros, which change nothing.

    oneDNN prepares a product of a new shape anew: the iteration on about 540 x 192 took 4.5 times as long
    where the height was another one in every step.
    """
    unit = -(-all_rows // (16 * 32)) * 32
    return min(all_rows, -(-rows // unit) * unit)


def _orthogonalised(update: Tensor, group: dict[str, Any]) -> Tensor:
    """About the nearest matrix with orthonormal rows or columns, in bfloat16: Newton-Schulz of order five."""
    a, b, c = group["ns_coefficients"]
    x = update.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x.div_(x.norm().clamp(min=group["eps"]))
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _size(rows: int | Tensor, columns: int) -> Any:
    """What gives an orthogonalised update of so many rows the size of AdamW's (root mean square 0.2)."""
    if isinstance(rows, Tensor):
        return 0.2 * rows.clamp_min(columns).sqrt()
    return 0.2 * math.sqrt(max(rows, columns))


def _learning_rate(group: dict[str, Any]) -> Any:
    """A float, or the tensor where reading it would make the host wait."""
    lr = group["lr"]
    return lr if isinstance(lr, Tensor) and lr.device.type != "cpu" else float(lr)


def _firing_count(mask: Tensor | None, device: torch.device) -> Tensor:
    """Firing rows among all of the parameter, those of other processes included."""
    assert mask is not None
    count = mask.sum(dtype=torch.float32)
    count = count.full_tensor() if isinstance(count, DTensor) else count
    return count.to(device, non_blocking=True)


def _gathered(update: Tensor, parameter: DTensor) -> Tensor:
    """All rows, out of every process's own."""
    sharded = DTensor.from_local(
        update.bfloat16(),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return sharded.full_tensor()


def _own_rows(update: Tensor, parameter: DTensor) -> Tensor:
    """This process's own rows out of all."""
    return distribute_tensor(
        update.contiguous(), parameter.device_mesh, parameter.placements, src_data_rank=None
    ).to_local()
