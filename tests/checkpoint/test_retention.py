"""Which checkpoints may go: for any run and any rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onn_lightning.checkpoint.retention import Retention, Saved

HOUR = 3600.0

rules = st.builds(
    Retention,
    keep_last=st.integers(1, 4),
    keep_best=st.integers(0, 3),
    mode=st.sampled_from(("min", "max")),
    keep_every_hours=st.none() | st.floats(0.1, 5.0),
)


@st.composite
def runs(draw: st.DrawFn) -> list[Saved]:
    seconds, saved = 0.0, []
    for step in range(draw(st.integers(1, 30))):
        seconds += draw(st.floats(0.0, 2 * HOUR))
        known = draw(st.none() | st.just(seconds))
        saved.append(Saved(f"step={step}.ckpt", step, known, draw(st.none() | st.floats(allow_nan=True))))
    return saved


@given(rules, runs())
def test_the_newest_and_the_best_stay_and_no_more_than_was_asked_for(
    rule: Retention, saved: list[Saved]
) -> None:
    going = rule.removable(saved)
    staying = [one for one in saved if one not in going]
    assert saved[-1] in staying
    assert staying[-rule.keep_last :] == saved[-rule.keep_last :]
    scores = sorted(s.score for s in saved if s.score == s.score and s.score is not None)
    best = scores[: rule.keep_best] if rule.mode == "min" else scores[::-1][: rule.keep_best]
    kept = [one.score for one in staying]
    assert all(score in kept for score in best)
    if rule.keep_every_hours is None:
        assert len(staying) <= rule.keep_last + rule.keep_best


@given(rules, runs())
def test_removing_after_every_save_leaves_what_removing_at_the_end_would(
    rule: Retention, saved: list[Saved]
) -> None:
    """So what stays does not depend on kills, and what is kept for an hour stays for good."""
    kept: list[Saved] = []
    for one in saved:
        kept.append(one)
        going = rule.removable(kept)
        kept = [other for other in kept if other not in going]
    at_the_end = rule.removable(saved)
    assert kept == [one for one in saved if one not in at_the_end]


@given(st.floats(0.5, 5.0), runs())
def test_every_full_period_with_a_checkpoint_keeps_its_first(hours: float, saved: list[Saved]) -> None:
    going = Retention(keep_every_hours=hours).removable(saved)
    first: dict[int, Saved] = {}
    for one in saved:
        if one.seconds is not None and one.seconds >= hours * HOUR:
            first.setdefault(int(one.seconds // (hours * HOUR)), one)
    assert not set(first.values()) & set(going)


@pytest.mark.parametrize(
    ("given_numbers", "said"),
    [
        ({"keep_last": 0}, "keep_last is 0"),
        ({"keep_best": -1}, "keep_best is -1"),
        ({"keep_every_hours": 0.0}, r"keep_every_hours is 0\.0"),
        ({"mode": "least"}, "mode is 'least'"),
    ],
)
def test_impossible_numbers_are_refused(given_numbers: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Retention(**given_numbers)  # type: ignore[arg-type]
