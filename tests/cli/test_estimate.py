"""`onn estimate`: the same numbers as a table and as JSON, without data."""

from __future__ import annotations

import json
from collections.abc import Callable

from cli_standins import Outcome

Onn = Callable[..., Outcome]


def test_a_flagship_is_estimated_where_its_data_is_not(onn: Onn) -> None:
    outcome = onn(
        "estimate", "--config", "omni_3b", "--gpus", "8", "--gpu", "h100", "--gpu-memory", "80", "--json"
    )
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert set(found["states"]) == {"single", "ddp", "fsdp2"}
    assert found["backward"] == 2 * found["forward"]
    assert found["tokens_per_day"] * 3 * found["forward"] == 8 * 989e12 * 0.4 * 86_400
    for states in found["states"].values():
        assert (
            states["peak"]
            == sum(states[k] for k in ("weights", "gradients", "optimizer")) + found["step"]["peak"]
        )
        assert states["fits"] == (states["peak"] <= 80e9)


def test_the_table_says_what_fits_and_follows_changes_of_the_config(onn: Onn) -> None:
    arguments = ("estimate", "--config", "bonsai_0.1b", "--gpu-memory", "16")
    assert "does not fit" in onn(*arguments).out
    changed = onn(*arguments, "--data.init_args.row_length", "2048")
    assert "does not fit" not in changed.out
    assert "1 x 2,048 tokens" in changed.out


def test_mistakes_are_one_line(onn: Onn) -> None:
    for arguments, message in (
        (("--gpu", "abacus"), "known are h100"),
        (("--mfu", "2"), "at most 1"),
        (("--gpsu", "2"), "unrecognized"),
        (("--trainer.precision", "64-true"), "estimated are"),
    ):
        outcome = onn("estimate", "--config", "bonsai_0.1b", *arguments)
        assert outcome.code == 2
        assert message in outcome.err
        assert outcome.err.count("\n") == 1
