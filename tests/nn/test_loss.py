"""Losses, norm and heads against torch's own functions, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_reference import plain_rms_norm
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence

from onn_lightning.nn import CharacterHead, PatchRegressionHead, TextEmbedder, loss
from onn_lightning.nn.loss import bits_per_byte, gaussian_kl, linear_cross_entropy, predictive_integrity
from onn_lightning.nn.norm import rms_normalize


@pytest.fixture
def few_logits_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows of 13 symbols a chunk: 17 rows make three full chunks and a rest."""
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 5 * 13)


def random_problem(rows: int = 17, symbols: int = 13) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(symbols, 6, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(symbols, (rows,))


@pytest.mark.usefixtures("few_logits_at_a_time")
def test_chunked_cross_entropy_equals_torch_in_value_entropy_and_choice() -> None:
    hidden, weight, targets = random_problem()
    losses, entropy, best = linear_cross_entropy(hidden, weight, targets)
    logits = hidden @ weight.T
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))
    torch.testing.assert_close(entropy, Categorical(logits=logits).entropy().detach())
    assert torch.equal(best, logits.argmax(dim=-1))
    assert not entropy.requires_grad


@pytest.mark.usefixtures("few_logits_at_a_time")
def test_chunked_cross_entropy_has_the_gradients_of_torch() -> None:
    hidden, weight, targets = random_problem()
    row_weights = torch.randn(17, dtype=torch.float64)
    expected = torch.autograd.grad(
        (F.cross_entropy(hidden @ weight.T, targets, reduction="none") * row_weights).sum(), (hidden, weight)
    )
    measured = torch.autograd.grad(
        (linear_cross_entropy(hidden, weight, targets)[0] * row_weights).sum(), (hidden, weight)
    )
    for got, want in zip(measured, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("few_logits_at_a_time")
def test_chunked_cross_entropy_passes_gradcheck() -> None:
    hidden, weight, targets = random_problem()
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets)[0], (hidden, weight))


@pytest.mark.parametrize("chunk_logits", [1, 13, 13 * 16, 13 * 17, 10**9])
def test_the_size_of_the_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch, chunk_logits: int) -> None:
    hidden, weight, targets = random_problem()
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk_logits)
    losses, entropy, _ = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(losses, F.cross_entropy(hidden @ weight.T, targets, reduction="none"))
    torch.testing.assert_close(entropy, Categorical(logits=hidden @ weight.T).entropy().detach())


def test_cross_entropy_survives_logits_of_any_size() -> None:
    hidden = torch.tensor([[1e4], [-1e4], [0.0]], requires_grad=True)
    losses, entropy, _ = linear_cross_entropy(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0, 1]))
    torch.testing.assert_close(losses.detach(), torch.tensor([0.0, 2e4, math.log(2)]))
    torch.testing.assert_close(entropy, torch.tensor([0.0, 0.0, math.log(2)]))
    losses.sum().backward()
    assert hidden.grad.isfinite().all()


def test_cross_entropy_of_no_rows_is_empty_and_has_zero_gradients() -> None:
    _, weight, _ = random_problem()
    hidden = torch.zeros(0, 6, dtype=torch.float64, requires_grad=True)
    losses, entropy, best = linear_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.int64))
    losses.sum().backward()
    assert losses.shape == entropy.shape == best.shape == (0,)
    assert (weight.grad == 0).all()


def test_bfloat16_cross_entropy_sums_in_float32() -> None:
    hidden, weight, targets = random_problem()
    losses, entropy, _ = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets)
    assert losses.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(
        losses.double(), F.cross_entropy(hidden @ weight.T, targets, reduction="none"), rtol=0.1, atol=0.1
    )


@settings(max_examples=20, deadline=None)
@given(prior=st.floats(0.05, 3.0), seed=st.integers(0, 1000))
def test_kl_equals_torch_distributions(prior: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (7, 2))]
    expected = torch.cat(
        [
            kl_divergence(Normal(mu, F.softplus(raw)), Normal(torch.zeros_like(mu), prior)).flatten()
            for mu, raw in weights
        ]
    ).mean()
    measured = gaussian_kl([(mu, raw) for mu, raw in weights], torch.tensor(prior, dtype=torch.float64))
    torch.testing.assert_close(measured, expected)


def test_kl_is_zero_at_the_prior_and_is_computed_in_float32_for_bfloat16_weights() -> None:
    mu = torch.zeros(50, 40, dtype=torch.bfloat16)
    raw = torch.full_like(mu, math.log(math.expm1(0.5)))
    kl = gaussian_kl([(mu, raw)], torch.tensor(0.5))
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl, torch.tensor(0.0), atol=1e-4, rtol=0.0)


def test_kl_passes_gradcheck() -> None:
    mu, raw = torch.randn(2, 3, 4, dtype=torch.float64)
    prior = torch.tensor(0.7, dtype=torch.float64)
    inputs = (mu.requires_grad_(), raw.requires_grad_())
    assert torch.autograd.gradcheck(lambda m, r: gaussian_kl([(m, r)], prior), inputs)


@settings(max_examples=50, deadline=None)
@given(
    main=st.floats(0.0, 50.0),
    tau=st.floats(0.0, 12.0),
    surprise=st.floats(0.0, 10.0),
    alpha=st.floats(0.0, 3.0),
    gamma=st.floats(0.0, 3.0),
)
def test_predictive_integrity_is_a_share_and_falls_with_loss_and_surprise(
    main: float, tau: float, surprise: float, alpha: float, gamma: float
) -> None:
    def pi(main: float, surprise: float) -> torch.Tensor:
        as_tensor = (torch.tensor(value, dtype=torch.float64) for value in (main, tau, surprise))
        return predictive_integrity(*as_tensor, alpha, gamma)

    assert 0 <= pi(main, surprise) <= 1
    assert pi(main + 1, surprise) <= pi(main, surprise) and pi(main, surprise + 1) <= pi(main, surprise)
    if tau >= 1e-3:
        assert pi(main, surprise) == pytest.approx(
            math.exp(-alpha * (main / tau + gamma * surprise)), rel=1e-9
        )


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight() -> None:
    nats = torch.tensor(10 * math.log(256), dtype=torch.float64)
    torch.testing.assert_close(bits_per_byte(nats, torch.tensor(10)).double(), torch.tensor(8.0).double())


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (1, 1)])
def test_rms_norm_equals_its_formula_and_passes_gradcheck(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(rms_normalize(x), plain_rms_norm(x))
    assert torch.autograd.gradcheck(rms_normalize, (x,))


def test_rms_norm_of_a_zero_row_is_zero_with_a_finite_gradient() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_normalize(x)
    y.sum().backward()
    assert (y == 0).all() and x.grad.isfinite().all()


def test_rms_norm_of_bfloat16_sums_squares_in_float32() -> None:
    x = torch.full((1, 4096), 3.0, dtype=torch.bfloat16)
    assert rms_normalize(x).dtype == torch.bfloat16
    torch.testing.assert_close(rms_normalize(x).float(), torch.ones(1, 4096), rtol=0.01, atol=0.0)


@pytest.mark.parametrize("embedding_size", [None, 5])
def test_the_character_head_is_tied_and_its_loss_is_that_of_its_logits(embedding_size: int | None) -> None:
    num_bytes = torch.arange(11)
    head = CharacterHead(11, 8, num_bytes, embedding_size)
    embedder = TextEmbedder(11, 2, 3, 8, embedding_size)
    head.tie_weights(embedder)
    assert head.weight is embedder.character.weight
    hidden, targets = torch.randn(6, 8), torch.randint(11, (6,))
    output = head(hidden, targets)
    torch.testing.assert_close(output.loss, F.cross_entropy(head.logits(hidden), targets, reduction="none"))
    assert torch.equal(output.correct, head.logits(hidden).argmax(dim=-1) == targets)
    assert torch.equal(output.num_bytes, num_bytes[targets])
    output.loss.sum().backward()
    assert embedder.character.weight.grad.abs().sum() > 0


def test_a_vocabulary_without_its_byte_counts_is_refused() -> None:
    with pytest.raises(ValueError, match="the vocabulary 11 symbols"):
        CharacterHead(11, 8, torch.zeros(10, dtype=torch.int64))


def test_the_untrained_head_knows_nothing() -> None:
    """The first loss is close to ln(V): no direction of hidden space is preferred at the start."""
    torch.manual_seed(0)
    head, embedder = CharacterHead(512, 64, torch.ones(512, dtype=torch.int64)), TextEmbedder(512, 1, 1, 64)
    head.tie_weights(embedder)
    output = head(rms_normalize(torch.randn(256, 64)), torch.randint(512, (256,)))
    assert output.loss.mean().item() == pytest.approx(math.log(512), rel=0.1)


def test_patch_regression_is_the_mean_squared_error_of_each_patch() -> None:
    head = PatchRegressionHead(8, 5)
    nn.init.normal_(head.projection.weight)
    hidden, targets = torch.randn(4, 8), torch.randn(4, 5)
    expected = F.mse_loss(head.projection(hidden), targets, reduction="none").mean(dim=-1)
    torch.testing.assert_close(head(hidden, targets), expected)
