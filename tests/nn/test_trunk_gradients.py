"""The whole tower against plain autograd: outputs, and one-pass gradients against the two-pass reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from plain_reference import (
    Firing,
    assert_same_gradients,
    plain_trunk,
    relative_error,
    two_pass_gradients,
)
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from trunk_case import CONFIGS, W_GATE, make_case

from onn_lightning.nn import MoIETrunk


@pytest.mark.parametrize("name", CONFIGS)
def test_the_tower_computes_what_plain_operations_compute(name: str) -> None:
    case = make_case(CONFIGS[name])
    hidden = case.trunk(case.x, case.positions, case.document_ids).hidden
    expected = plain_trunk(case.trunk, case.x, case.positions, case.document_ids, [])
    assert relative_error(hidden, expected) < 1e-12


@pytest.mark.parametrize("name", CONFIGS)
def test_one_pass_gradients_of_the_tower_equal_the_two_pass_reference(name: str) -> None:
    case = make_case(CONFIGS[name])
    reference = case.reference()
    surprise = case.backward()
    assert_same_gradients(case.trunk, reference.gradients)
    for (layer, part), expected in zip(case.trunk.neuron_slices.items(), reference.surprises, strict=True):
        assert relative_error(surprise[part], expected) < 1e-11, layer


def test_gate_and_sigma_gradients_of_every_layer_come_from_the_gate_loss_too() -> None:
    case = make_case(CONFIGS["normalised"])
    without = two_pass_gradients(case.trunk, case.plain_loss, 0.0).gradients
    case.backward()
    for name, parameter in case.trunk.named_parameters():
        if name.endswith(("sigma_weight", "gate_param")):
            assert (parameter.grad - without[name]).norm() > 1e-6 * without[name].norm() > 0, name


def test_a_gate_weight_does_not_change_the_measured_surprise() -> None:
    case = make_case(CONFIGS["normalised"])
    measured = case.backward()
    output = case.trunk(case.x, case.positions, case.document_ids)
    case.loss(output.hidden).backward()
    assert torch.equal(measured, output.auxiliary.surprise.grad)


def test_without_the_handle_the_gradients_are_those_of_plain_autograd() -> None:
    case = make_case(CONFIGS["normalised"])
    expected = two_pass_gradients(case.trunk, case.plain_loss, 0.0).gradients
    case.loss(case.trunk(case.x, case.positions, case.document_ids).hidden).backward()
    assert_same_gradients(case.trunk, expected)


def test_activation_of_the_auxiliary_is_laid_out_by_the_neuron_slices() -> None:
    case = make_case(CONFIGS["grouped keys"])
    firings: list[Firing] = []
    plain_trunk(case.trunk, case.x, case.positions, case.document_ids, firings)
    activation = case.trunk(case.x, case.positions, case.document_ids).auxiliary.activation
    slices = list(case.trunk.neuron_slices.values())
    assert slices[-1].stop == len(activation)
    for part, firing in zip(slices, firings, strict=True):
        torch.testing.assert_close(activation[part], (firing.y != 0).double().flatten(0, 1).mean(dim=0))


def checkpoint_whole_blocks(trunk: MoIETrunk) -> None:
    for index, block in enumerate(trunk.blocks):
        trunk.blocks[index] = checkpoint_wrapper(
            block
        )  # what Lightning's activation_checkpointing_policy applies


def checkpoint_layers_within_blocks(trunk: MoIETrunk) -> None:
    for block in trunk.blocks:
        block.moie = checkpoint_wrapper(block.moie)


@pytest.mark.parametrize("wrap", [checkpoint_whole_blocks, checkpoint_layers_within_blocks])
def test_gradient_checkpointing_changes_no_gradient_and_no_surprise(
    wrap: Callable[[MoIETrunk], None],
) -> None:
    case = make_case(CONFIGS["normalised"])
    reference = case.reference()
    expected = {name: gradient for name, gradient in reference.gradients.items()}
    wrap(case.trunk)
    surprise = case.backward()
    for name, parameter in case.trunk.named_parameters():
        name = name.replace("_checkpoint_wrapped_module.", "")
        assert relative_error(parameter.grad, expected[name]) < 1e-10, name
    assert relative_error(surprise, torch.cat(reference.surprises)) < 1e-11


def test_accumulation_over_two_micro_batches_sums_their_two_pass_gradients() -> None:
    case = make_case(CONFIGS["normalised"])
    expected: dict[str, Tensor] = {}
    for rows in (slice(0, 1), slice(1, 2)):
        part = two_pass_gradients(
            case.trunk, lambda seen, rows=rows: case.plain_loss(seen, rows) / 2, W_GATE / 2
        )
        expected = {name: expected.get(name, 0) + gradient for name, gradient in part.gradients.items()}
    for rows in (slice(0, 1), slice(1, 2)):
        case.backward(rows, scale=0.5)
    assert_same_gradients(case.trunk, expected)


def test_a_loss_scale_is_undone_by_unscaling() -> None:
    case = make_case(CONFIGS["normalised"])
    reference = case.reference()
    surprise = case.backward(scale=1024.0) / 1024
    for parameter in case.trunk.parameters():
        parameter.grad /= 1024
    assert_same_gradients(case.trunk, reference.gradients)
    assert relative_error(surprise, torch.cat(reference.surprises)) < 1e-11


def test_frozen_weights_still_report_their_surprise() -> None:
    case = make_case(CONFIGS["normalised"])
    reference = case.reference()
    case.trunk.requires_grad_(False)
    case.x.requires_grad_()
    assert relative_error(case.backward(), torch.cat(reference.surprises)) < 1e-11


def test_bfloat16_autocast_gives_finite_gradients_close_to_float32() -> None:
    case = make_case(CONFIGS["normalised"])
    trunk, x = case.trunk.float(), case.x.float()
    losses = []
    for enabled in (False, True):
        trunk.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = trunk(x, case.positions, case.document_ids)
        loss = case.loss(output.hidden.float())
        (loss + W_GATE * output.auxiliary.gate_handle).backward()
        losses.append(loss.detach())
        assert all(parameter.grad.isfinite().all() for parameter in trunk.parameters())
        assert output.auxiliary.surprise.grad.isfinite().all()
    torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.0)
