"""One step is the definition's; what a constraint freezes stays, what it trains moves; training finds features."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from saecore.kernels.batch_topk import cpu as batch_topk
from saecore.metrics.evaluate import evaluate
from saecore.saes import build
from saecore.sources.synthetic import EVALUATION, Superposition
from saecore.spec import (
    ARCHITECTURES,
    CONSTRAINTS,
    DICTIONARIES,
    ConstraintSpec,
    RunSpec,
    SAESpec,
    SourceSpec,
    TrainingSpec,
)
from saecore.training import DivergedError, Trainer, calibrate, loop, start, train_many
from saecore.training.loop import stream

SMALL = SourceSpec("constant", n_features=64, d_model=16, expected_l0=3.0)


@pytest.fixture(scope="module")
def source() -> Superposition:
    return Superposition(SMALL)


def run_of(architecture="topk", constraint="free", training=None, tau=0.8, **fields) -> RunSpec:
    fields = {"d_model": 16, "n_latents": 64, "l0": 3, "aux_k": 8, **fields}
    training = {"steps": 100, "batch_size": 96, "learning_rate": 1e-3, **(training or {})}
    return RunSpec(
        SAESpec(architecture, **fields), SMALL, ConstraintSpec(constraint, tau=tau), TrainingSpec(**training)
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.sae.state_dict().items()}


def sample(source: Superposition, step: int, n: int = 96) -> torch.Tensor:
    return source.batch(n, step).x


DESIGNS = [
    *((a, {}) for a in ARCHITECTURES),
    ("topk", {"group_size": 8}),
    ("batch_topk", {"group_size": 7}),
    ("batch_topk", {"rescale": True}),
    ("matryoshka", {"fractions": (0.1, 0.2, 0.7)}),
    ("ortho", {"ortho_every": 2}),
    ("jump_relu", {"bandwidth": 0.5}),
]


@pytest.fixture
def exact_nearest(monkeypatch) -> None:
    """OrtSAE's neighbours in float32: the compiled path finds them in bfloat16 and may take another one near a tie
    (tests/kernels/test_batch_topk.py says how near)."""

    def nearest(W: torch.Tensor) -> np.ndarray:
        return (W @ W.T).fill_diagonal_(-torch.inf).argmax(1).numpy()

    monkeypatch.setattr(batch_topk, "nearest", nearest)


@pytest.fixture
def always_sparse(monkeypatch) -> None:
    """ReLU and JumpReLU start with many codes, which would take the dense path."""
    monkeypatch.setattr(loop, "DENSE_SHARE", 1.0)


@pytest.mark.usefixtures("exact_nearest", "always_sparse")
class TestFastPath:
    """The compiled path against autograd."""

    @pytest.mark.parametrize(("architecture", "fields"), DESIGNS)
    @pytest.mark.parametrize("dead", ["none", "few", "many"])
    def test_steps_from_one_state_agree(self, architecture, fields, dead, source):
        """Twenty steps in lockstep, so that rounding cannot grow: every gradient, weight, moment and scalar."""
        run = run_of(architecture, **fields)
        n_dead = {"none": 0, "few": 5, "many": 30}[dead]
        fast, plain = start(run, source, fast=True), start(run, source, fast=False)
        assert fast.fast and not plain.fast
        if dead != "none":
            fast.sae.W_enc.data[:n_dead] *= 0.05  # too weak to be chosen, strong enough to explain a residual
        for step in range(20):
            fast.silent[:n_dead] = run.sae.dead_after
            plain.load_state_dict(fast.state_dict())
            x = sample(source, step)
            losses = fast.step(x), plain.step(x)
            assert losses[0] == pytest.approx(losses[1], rel=1e-4)
            for name in fast.trained:
                wanted, found = plain.grads[name], fast.grads[name]
                assert (found - wanted).norm() <= 1e-4 * wanted.norm() + 1e-7, (step, name)
            assert torch.equal(fast.silent, plain.silent)
            assert fast.l0 == plain.l0 and fast.steps_done == plain.steps_done
            assert fast.penalty == pytest.approx(plain.penalty)
            torch.testing.assert_close(fast.sae.threshold, plain.sae.threshold, rtol=1e-4, atol=1e-5, equal_nan=True)

    @pytest.mark.parametrize("constraint", sorted(set(CONSTRAINTS) - {"untrained", *DICTIONARIES}))
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_twenty_steps_on_their_own_stay_together(self, architecture, constraint, source):
        run = run_of(architecture, constraint, tau=0.95, training={"learning_rate": 3e-3}, dead_after=3)
        fast, plain = start(run, source, fast=True), start(run, source, fast=False)
        for step in range(20):
            x = sample(source, step)
            assert fast.step(x) == pytest.approx(plain.step(x), rel=5e-3)
        for name, wanted in plain.sae.state_dict().items():
            moved = (wanted - start(run, source).sae.state_dict()[name]).nan_to_num().norm()
            assert (fast.sae.state_dict()[name] - wanted).nan_to_num().norm() <= 0.03 * moved + 1e-6, name

    @pytest.mark.parametrize("architecture", ["relu", "jump_relu", "batch_topk"])
    def test_more_active_codes_than_pay_take_the_dense_path(self, architecture, source, monkeypatch):
        run = run_of(architecture, l0=16)
        fast = start(run, source, fast=True)
        if architecture != "batch_topk":
            (fast.sae.b_enc if architecture == "relu" else fast.sae.threshold).data.fill_(0.0)  # half is active
        dense = mock.Mock(wraps=fast._dense_grads)
        monkeypatch.setattr(fast, "_dense_grads", dense)
        for share, calls in ((1.0, 0), (0.2, 1)):
            monkeypatch.setattr(loop, "DENSE_SHARE_RANKED" if run.sae.selects_by_rank else "DENSE_SHARE", share)
            fast.step(sample(source, 0))
            assert dense.call_count == calls


class TestConstraints:
    """Trained: moved. Frozen: the same to the bit."""

    @pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    @pytest.mark.parametrize(
        ("constraint", "moving"),
        [
            ("free", {"W_enc", "W_dec"}),
            ("soft_frozen_decoder", {"W_enc", "W_dec"}),
            ("frozen_decoder", {"W_enc"}),
            ("oracle", {"W_enc"}),
            ("frozen_encoder", {"W_dec"}),
            ("both_frozen", set()),
        ],
    )
    def test_what_is_frozen_stays_and_what_is_trained_moves(self, constraint, moving, architecture, fast, source):
        trainer = start(run_of(architecture, constraint, dead_after=2), source, fast)
        before = weights(trainer)
        for step in range(6):
            trainer.step(sample(source, step))
        after = weights(trainer)
        moving = moving | {"b_dec", "b_enc" if architecture == "relu" else "threshold"}
        moving |= {"b_enc"} if architecture == "jump_relu" else set()
        for name in before:
            assert torch.equal(before[name], after[name]) == (name not in moving), name

    def test_untrained_does_not_move_at_all(self, source):
        trainers = [start(run_of("batch_topk", c), source) for c in ("untrained", "free")]
        before = weights(trainers[0])
        train_many(trainers, source, 3)
        assert trainers[1].steps_done == 3
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights(trainers[0]).items())

    def test_the_oracle_keeps_the_truth(self, source):
        trainer = start(run_of(constraint="oracle"), source)
        train_many([trainer], source, 5)
        assert torch.equal(trainer.sae.W_dec.data, source.features)

    @pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
    @pytest.mark.parametrize("tau", [0.5, 0.9, 0.99])
    def test_a_soft_frozen_decoder_keeps_its_cone(self, tau, fast, source):
        run = run_of("topk", "soft_frozen_decoder", {"learning_rate": 3e-2}, tau=tau)
        trainer = start(run, source, fast)
        first = trainer.sae.W_dec.detach().clone()
        lowest = []
        for step in range(60):
            trainer.step(sample(source, step))
            lowest.append(float((trainer.sae.W_dec.data * first).sum(1).min()))
        assert tau - 1e-5 <= min(lowest) < tau + 1e-3
        torch.testing.assert_close(trainer.sae.W_dec.norm(dim=1).detach(), torch.ones(64), rtol=0, atol=1e-5)

    def test_free_decoder_rows_stay_unit(self, source):
        trainer = start(run_of(training={"learning_rate": 3e-2}), source)
        train_many([trainer], source, 20)
        torch.testing.assert_close(trainer.sae.W_dec.norm(dim=1).detach(), torch.ones(64), rtol=0, atol=1e-5)

    def test_an_unknown_optimum_is_not_needed_to_share_a_start(self, source):
        """Constraints of one seed share every weight they do not replace."""
        starts = {c: weights(start(run_of("jump_relu", c), source)) for c in CONSTRAINTS if c not in DICTIONARIES}
        for name, first in starts.items():
            if name != "oracle":
                assert torch.equal(first["W_dec"], starts["free"]["W_dec"])
                assert torch.equal(first["W_enc"], starts["free"]["W_enc"])


class TestSparsity:
    @pytest.mark.parametrize("architecture", ["relu", "jump_relu"])
    def test_l0_is_brought_to_its_target(self, architecture, source):
        trainer = start(run_of(architecture, training={"learning_rate": 3e-3, "batch_size": 128}), source)
        train_many([trainer], source, 3000)
        codes = trainer.sae.encode(source.batch(8192, 0, EVALUATION).x)
        assert float((codes > 0).sum(1).float().mean()) == pytest.approx(3.0, rel=0.1)

    @pytest.mark.parametrize("architecture", ["batch_topk", "matryoshka", "ortho"])
    def test_the_running_threshold_gives_the_l0_of_training(self, architecture, source):
        trainer = start(run_of(architecture), source)
        train_many([trainer], source, 300)
        codes = trainer.sae.encode(source.batch(8192, 0, EVALUATION).x)
        assert float((codes > 0).sum(1).float().mean()) == pytest.approx(3.0, rel=0.1)

    def test_the_running_threshold_is_a_mean_of_the_smallest_codes(self, source):
        trainer, seen = start(run_of("batch_topk"), source), []
        for step in range(3):
            x = sample(source, step)
            pre = trainer.sae.preactivations(x).detach().flatten()
            seen.append(float(pre.topk(3 * 96).values[-1]))
            trainer.step(x)
        assert trainer.sae.threshold.tolist() == pytest.approx([np.mean(seen)] * 64, rel=1e-5)

    @pytest.mark.parametrize("architecture", ["batch_topk", "relu", "jump_relu"])
    @pytest.mark.parametrize("l0", [None, 7])
    def test_calibration_meets_an_l0_and_moves_no_weight(self, architecture, l0, source):
        spec = run_of(architecture).sae
        sae = build(spec, ConstraintSpec(), generator=torch.Generator().manual_seed(0))
        before = {n: p.clone() for n, p in sae.named_parameters()}
        calibrate(sae, source, l0)
        codes = sae.encode(source.batch(4096, 0, EVALUATION).x)
        assert float((codes > 0).sum(1).float().mean()) == pytest.approx(l0 or 3, rel=0.05)
        for name, weight in sae.named_parameters():
            assert torch.equal(weight, before[name]) or (architecture, name) == ("relu", "b_enc")

    def test_an_untrained_sae_comes_calibrated(self, source):
        sae = start(run_of("batch_topk", "untrained"), source).sae
        codes = sae.encode(source.batch(4096, 0, EVALUATION).x)
        assert float((codes > 0).sum(1).float().mean()) == pytest.approx(3, rel=0.05)

    def test_silence_is_counted_from_the_last_firing(self, source):
        trainer = start(run_of(), source)
        x = sample(source, 0)
        fired = (trainer.sae.encode(x) > 0).any(0)
        trainer.silent.fill_(4)
        trainer.step(x)
        assert torch.equal(trainer.silent, torch.where(fired, 0, 5).int())


class TestDivergence:
    @pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_nan_in_the_data_is_an_error_and_leaves_the_state(self, architecture, fast, source):
        trainer = start(run_of(architecture), source, fast)
        for step in range(2):
            trainer.step(sample(source, step))
        before = {name: tensor.clone() for name, tensor in trainer.state_dict().items()}
        bad = sample(source, 2)
        bad[5, 3] = float("nan")
        with pytest.raises(DivergedError, match=f"loss=nan at step 2 of run {trainer.run.key()}: the data hold NaN"):
            trainer.step(bad)
        after = trainer.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if name != "scalars")
        assert torch.equal(before["scalars"][:4], after["scalars"][:4])
        twin = start(run_of(architecture), source, fast)
        for step in range(2):
            twin.step(sample(source, step))
        x = sample(source, 2)
        assert trainer.step(x) == twin.step(x)
        assert all(torch.equal(t, twin.sae.state_dict()[n]) for n, t in trainer.sae.state_dict().items())


class TestManyOnOneStream:
    def test_together_is_as_alone(self, source):
        runs = [run_of("topk"), run_of("jump_relu"), run_of("ortho", "soft_frozen_decoder"), run_of("batch_topk")]
        together = [start(run, source) for run in runs]
        train_many(together, source, 12)
        for run, trainer in zip(runs, together, strict=True):
            alone = start(run, source)
            train_many([alone], source, 12)
            assert all(torch.equal(t, trainer.sae.state_dict()[n]) for n, t in alone.sae.state_dict().items())

    def test_those_ahead_wait(self, source):
        ahead, behind = start(run_of(), source), start(run_of(), source)
        train_many([ahead], source, 7)
        train_many([ahead, behind], source, 10)
        assert ahead.steps_done == behind.steps_done == 10
        assert all(torch.equal(t, behind.sae.state_dict()[n]) for n, t in ahead.sae.state_dict().items())

    def test_the_samples_are_those_of_the_seed(self, source):
        losses: list[float] = []
        trainer = start(run_of(training={"seed": 3}), source)
        train_many([trainer], source, 2, watch=lambda _, loss: losses.append(float(loss)))
        by_hand = start(run_of(training={"seed": 3}), source)
        assert losses == [by_hand.step(source.batch(96, step, stream(3)).x) for step in range(2)]

    def test_different_streams_are_refused(self, source):
        trainers = [start(run_of(training={"seed": s}), source) for s in (0, 1)]
        with pytest.raises(ValueError, match=r"must share batch size and seed, got \[\(96, 0\), \(96, 1\)\]"):
            train_many(trainers, source, 1)

    def test_the_learning_rate_follows_its_schedule(self, source):
        """With rate 0 in the limit the last steps move less and less."""
        run = run_of(training={"steps": 40, "decay": 0.5})
        trainer, moves = start(run, source), []
        for step in range(40):
            before = trainer.sae.W_enc.detach().clone()
            trainer.step(sample(source, step))
            moves.append(float((trainer.sae.W_enc.detach() - before).norm()))
        assert moves[39] < 0.2 * moves[20]


class TestLearning:
    """A small problem that training solves and a frozen decoder cannot: 64 features in 16 dimensions, 3 active."""

    SOURCE = SourceSpec("constant", n_features=64, d_model=16, expected_l0=3.0, seed=1)

    def trained(self, constraint: str) -> dict[str, float]:
        run = run_of("topk", constraint, {"learning_rate": 6e-3, "batch_size": 256})
        run, world = dataclasses.replace(run, source=self.SOURCE), Superposition(self.SOURCE)
        trainer = start(run, world)
        first = trainer.sae.W_dec.detach().clone()
        train_many([trainer], world, 600)
        return evaluate(trainer.sae, world, rows=8192, start=first)

    def test_topk_finds_the_features_and_a_frozen_decoder_finds_chance(self):
        free, frozen, oracle = (self.trained(name) for name in ("free", "frozen_decoder", "oracle"))
        assert free["fraction_recovered"] > 0.8
        assert frozen["fraction_recovered"] < 0.05
        assert oracle["fraction_recovered"] == 1
        assert frozen["explained_variance"] < 0.6 < 0.7 < free["explained_variance"] < oracle["explained_variance"]
        assert frozen["code_f1_micro"] < 0.3 < 0.4 < free["code_f1_micro"] < oracle["code_f1_micro"]
        assert frozen["cosine_to_start"] == pytest.approx(1) and free["cosine_to_start"] < 0.9
