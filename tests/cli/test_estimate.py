"""`onn estimate`: the same numbers as a table and as JSON, without data."""

from __future__ import annotations

import json
from collections.abc import Callable

from cli_standins import Outcome

Onn = Callable[..., Outcome]


def test_a_flagship_is_estimated_where_its_data_is_not(onn: Onn) -> None:
    gpus = ("--gpus", "8", "--gpu", "h100", "--gpu-memory", "80", "--tensor-parallel", "2")
    outcome = onn("estimate", "--config", "omni_3b", *gpus, "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert set(found["states"]) == {"single", "ddp", "fsdp2", "fsdp2_tp"}
    assert found["backward"] == 2 * found["forward"]
    assert found["tokens_per_day"] * 3 * found["forward"] == 8 * 989e12 * 0.4 * 86_400
    for strategy, states in found["states"].items():
        held = sum(states[k] for k in ("weights", "gradients", "optimizer"))
        for mode, step in found["steps"][strategy].items():
            assert states["peak"][mode] > held + step["trunk"]
            assert states["fits"][mode] == (states["peak"][mode] <= 80e9)
        assert states["peak"]["block"] < states["peak"]["selective"] < states["peak"]["none"]
    assert found["states"]["fsdp2"]["fits"]["block"]


def test_the_table_says_what_fits_and_follows_changes_of_the_config(onn: Onn) -> None:
    arguments = ("estimate", "--config", "bonsai_0.1b", "--gpu-memory", "12")
    assert "12 GB hold: single (block)" in onn(*arguments).out
    changed = onn(*arguments, "--data.init_args.row_length", "2048")
    assert "12 GB hold: single (none, block, selective)" in changed.out
    assert "1 x 2,048 tokens" in changed.out


def test_mistakes_are_one_line(onn: Onn) -> None:
    for arguments, message in (
        (("--gpu", "abacus"), "known are h100"),
        (("--mfu", "2"), "at most 1"),
        (("--gpsu", "2"), "unrecognized"),
        (("--trainer.precision", "64-true"), "estimated are"),
        (("--gpus", "8", "--tensor-parallel", "3"), "does not divide"),
    ):
        outcome = onn("estimate", "--config", "bonsai_0.1b", *arguments)
        assert outcome.code == 2
        assert message in outcome.err
        assert outcome.err.count("\n") == 1
