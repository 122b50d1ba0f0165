"""`reshape_checkpoint`: a checkpoint of a reshaped network out of one of a trained network.

Notable:
- A run is reshaped by writing such a checkpoint and resuming from it with the new shape in its config: so
  it is the same under any strategy, and everything else of the run goes on as it was.
- Nothing is changed in place; tensors that stay as they are, are shared by both checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from onn_lightning.checkpoint import description
from onn_lightning.checkpoint.older import in_todays_shapes
from onn_lightning.modality import Modality
from onn_lightning.reshaping.data_place import follow_modalities
from onn_lightning.reshaping.neuron_vectors import reshape_neuron_vectors
from onn_lightning.reshaping.optimizer_state import reshape_optimizer_state
from onn_lightning.reshaping.origins import neuron_origins, trace
from onn_lightning.reshaping.plan import Reshaping
from onn_lightning.reshaping.summary import summarize
from onn_lightning.reshaping.weights import reshape_weights


def reshape_checkpoint(
    checkpoint: Mapping[str, Any],
    plan: Reshaping,
    modalities: list[Modality],
    generator: torch.Generator | None = None,
) -> dict[str, Any]:
    """Reshape a checkpoint by a plan.

    Args:
        checkpoint: as `description.read` returns it.
        plan: made for the trunk that the checkpoint describes, see `onn_lightning.reshaping.plans`.
        modalities: those of the checkpoint, as `description.restore` returns them.
        generator: gives the random numbers of new parts; None: they follow from the checkpoint's step and
            history, so that all processes of a run get the same ones.
    Returns:
        The new checkpoint: weights, optimizer state and vectors of callbacks by neuron in the new shape, the
        description with one more entry in its history; everything else as it was.
    Raises:
        ValueError: if plan and checkpoint do not fit, or a part of the state cannot be carried over.
    """
    trunk, _ = description.restore(checkpoint, "the checkpoint", modalities)
    history, step = description.history(checkpoint), int(checkpoint.get("global_step", 0))
    if generator is None:
        generator = torch.Generator().manual_seed((step << 8) + len(history))
    seed = int(torch.randint(2**62, (), generator=generator))
    reshaped = trace(trunk, modalities, plan)

    checkpoint = in_todays_shapes(checkpoint, reshaped.old)
    new = dict(checkpoint)
    new["state_dict"] = reshape_weights(checkpoint["state_dict"], reshaped, seed)
    if "optimizer_states" in checkpoint:
        new["optimizer_states"] = [
            reshape_optimizer_state(state, checkpoint["state_dict"], reshaped)
            for state in checkpoint["optimizer_states"]
        ]
    if "callbacks" in checkpoint:
        origins = neuron_origins(reshaped)
        old_neurons = sum(layer.out_features for _, layer in reshaped.old.trunk.sbl_layers())
        new["callbacks"] = reshape_neuron_vectors(checkpoint["callbacks"], origins, old_neurons)
    if "loops" in checkpoint:
        has_new_symbols = any(
            name.startswith("embedders.") and origin.rows is not None and bool((origin.rows < 0).any())
            for name, origin in reshaped.origins.items()
        )
        new["loops"] = follow_modalities(checkpoint["loops"], plan.modalities, cut_anew=has_new_symbols)
    entry = {
        "step": step,
        "what": summarize(trunk, {m.name: m for m in modalities}, plan),
        "trunk": checkpoint[description.KEY]["trunk"],
    }
    now = [plan.modalities.get(modality.name, modality) for modality in modalities]
    new[description.KEY] = description.describe(plan.trunk, now, [*history, entry])
    return new
