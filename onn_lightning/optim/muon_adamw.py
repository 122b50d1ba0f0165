"""`MuonAdamW`: the matrices to Muon, everything else to AdamW, as one optimizer with one state.

Notable: schedulers, clipping, checkpoints and the masks of resting rows see one optimizer and need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onn_lightning.optim.firing import FiringRows, evaluated
from onn_lightning.optim.neuron_adamw import NeuronAdamW
from onn_lightning.optim.neuron_muon import NeuronMuon


class MuonAdamW(FiringRows):
    """Muon (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982) for matrices, AdamW for the rest.

    Args:
        params: groups as `parameter_groups` makes them; the group named "matrix" goes to Muon.
        lr: learning rate of AdamW, and of Muon, whose update is scaled to the size of AdamW's.
        embedding_lr: learning rate of the group named "embedding"; None: `lr`. A row of a table learns
            only in the steps that read it, so it may take larger ones.
        betas: of AdamW.
        momentum: of Muon.
        weight_decay: of the matrices.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float = 1e-3,
        embedding_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        matrices = [group for group in params if group.get("name") == "matrix"]
        others = [group for group in params if group.get("name") != "matrix"]
        if embedding_lr is not None:
            others = [
                group | {"lr": embedding_lr} if group.get("name") == "embedding" else group
                for group in others
            ]
        self._parts: list[NeuronMuon | NeuronAdamW] = []
        if matrices:
            self._parts.append(NeuronMuon(matrices, lr=lr, momentum=momentum, weight_decay=weight_decay))
        if others:
            self._parts.append(NeuronAdamW(others, lr=lr, betas=betas, weight_decay=0.0))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimizer's own groups and state."""
        start = 0
        for part in self._parts:
            stop = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:stop], self.state
            start = stop

    def set_firing(self, firing: Mapping[nn.Parameter, Tensor]) -> None:
        """Say which rows the next `step` moves; see `FiringRows.set_firing`."""
        for part in self._parts:
            part.set_firing(firing)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore, and share the restored groups and state with the parts again.

        Raises:
            ValueError: for a state of other parameter groups or shapes.
        """
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of both parts."""
        loss = evaluated(closure)
        found_inf = self._take_found_inf()
        for part in self._parts:
            part.found_inf = found_inf
            part.step()
        return loss
