"""`NeuronAdamW`: AdamW that leaves the rows of neurons that did not fire alone.

Notable:
- Nothing reaches a resting row: no momentum, no weight decay, no KL pull; its state rests with it.
- Tensors of which every row fires go through torch's fused kernel together: without masks this is
  `torch.optim.AdamW(fused=True)` bit for bit, and their saved states are interchangeable.
- On the CPU the rows that fire are moved by loops that touch nothing else (`row_kernels`): the more rows
  rest, the faster the step. On accelerators, where asking which rows fire would stop the host, a mask chooses
  (`row_formulas`).
- Steps are counted a tensor: the bias correction of a row that begins to fire late is that of its tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from onn_lightning.optim import row_formulas
from onn_lightning.optim.firing import FiringRows, LocalMasks, evaluated, local_part
from onn_lightning.optim.row_kernels import AdamWRows, fits


class _Slot(NamedTuple):
    """A parameter's part on this process with what moves it."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor


def _lists(slots: list[_Slot]) -> list[list[Tensor]]:
    """Parameters, gradients, both moments and steps, as torch's functions take them."""
    return [list(tensors) for tensors in zip(*slots, strict=True)]


class NeuronAdamW(FiringRows, torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with rows that may rest.

    Args:
        params: parameters or groups, e.g. those of `parameter_groups`.
        lr: learning rate.
        betas: decay of the two moments.
        eps: term of the denominator.
        weight_decay: decoupled decay.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        # only torch's own kernel could unscale gradients by the way, and Lightning would not clip any more
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; the masks of `set_firing` serve it alone.

        Args:
            closure: reevaluates the model and returns the loss.
        """
        loss = evaluated(closure)
        masks, found_inf = self._take_firing(), self._take_found_inf()
        loops: dict[torch.dtype, AdamWRows] = {}
        for group in self.param_groups:
            whole: list[_Slot] = []
            chosen: list[tuple[_Slot, Tensor]] = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                slot = self._slot(parameter)
                mask = masks.part(parameter)
                if mask is None:
                    whole.append(slot)
                else:
                    chosen.append((slot, mask))
            _move_whole(whole, group, found_inf)
            _move_rows(chosen, masks, group, loops, found_inf)
        for loop in loops.values():
            loop.run()
        return loss

    def _slot(self, parameter: nn.Parameter) -> _Slot:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        assert parameter.grad is not None
        slot = _Slot(parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["step"])
        return _Slot(*map(local_part, slot)) if isinstance(parameter, DTensor) else slot


def _move_whole(slots: list[_Slot], group: Mapping[str, Any], found_inf: Tensor | None) -> None:
    if not slots:
        return
    params, grads, exp_avgs, exp_avg_sqs, steps = _lists(slots)
    beta1, beta2 = group["betas"]
    adamw(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        fused=True,
        found_inf=found_inf,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _move_rows(
    chosen: list[tuple[_Slot, Tensor]],
    masks: LocalMasks,
    group: Mapping[str, Any],
    loops: dict[torch.dtype, AdamWRows],
    found_inf: Tensor | None,
) -> None:
    if not chosen:
        return
    moves = None if found_inf is None else found_inf == 0
    steps = [slot.step for slot, _ in chosen]
    torch._foreach_add_(steps, 1)
    if found_inf is not None:
        torch._foreach_sub_(steps, [found_inf] * len(steps))  # a lone tensor would be read by the host
    left: list[tuple[_Slot, Tensor]] = []
    for slot, mask in chosen:
        if not fits(*slot[:4]):
            left.append((slot, mask if moves is None else mask & moves))
            continue
        if moves is not None and not moves:
            continue
        loops.setdefault(slot.param.dtype, AdamWRows()).add(
            masks.numbers(mask),
            *slot[:4],
            step=float(slot.step),
            lr=float(group["lr"]),
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )
    if left:
        device = left[0][1].device
        formula = row_formulas.adamw if device.type == "cpu" else row_formulas.compiled_adamw()
        formula(
            *_lists([slot for slot, _ in left]),
            masks=[mask for _, mask in left],
            lr=_scalar_on(device, group["lr"]),
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


def _scalar_on(device: torch.device, value: float | Tensor) -> Tensor:
    """A number as a tensor there; filled in rather than copied, for which the host would wait."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return torch.full((), value, device=device)
