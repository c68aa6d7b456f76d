"""The trainer's Triton path is the definition's, to the update; what must not be taken is not, and is told in time.

On a machine without a GPU the kernels run in Triton's interpreter, on tensors of the CPU.
"""

import itertools

import numpy as np
import pytest
import torch

from saecore import kernels
from saecore.sources.base import EVALUATION, TRAINING
from saecore.sources.synthetic import Superposition
from saecore.spec import ARCHITECTURES, ConstraintSpec, RunSpec, SAESpec, SourceSpec, TrainingSpec
from saecore.training import DivergedError, Trainer, device, loop, start, train_many
from saecore.training.feed import Feed
from saecore.training.loss import training_loss
from tests.training.rounding import rounded

WORLD = SourceSpec("constant", n_features=20, d_model=9, expected_l0=2.0)
HERE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def source() -> Superposition:
    return Superposition(WORLD, HERE)


@pytest.fixture(autouse=True)
def no_dense_steps(monkeypatch) -> None:
    """At these sizes every SAE is dense by the measure of a large one."""
    monkeypatch.setattr(device, "DENSE_SHARE", 1.0)


def run_of(architecture="batch_topk", constraint="free", rate=3e-3, batch=4, steps=20, **fields) -> RunSpec:
    """Latents count as dead after two silent steps, so that the auxiliary loss takes part."""
    fields = {"d_model": 9, "n_latents": 14, "l0": 2, "aux_k": 3, "dead_after": 2, **fields}
    training = TrainingSpec(steps=steps, batch_size=batch, learning_rate=rate)
    return RunSpec(SAESpec(architecture, **fields), WORLD, ConstraintSpec(constraint, tau=0.95), training)


def on_device(run: RunSpec, source: Superposition, precision=torch.float32) -> Trainer:
    return start(run, source, path="triton", precision=precision)


def sample(source: Superposition, step: int, n: int = 4) -> torch.Tensor:
    return source.batch(n, step).x


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All of it but the seconds."""
    found = {name: tensor.clone() for name, tensor in trainer.state_dict().items()}
    return found | {"scalars": found["scalars"][:4]}


def same(one: Trainer, other: Trainer) -> bool:
    a, b = state(one), state(other)
    return all(torch.equal(a[name].nan_to_num(), b[name].nan_to_num()) for name in a)


DESIGNS = {
    "topk": ("topk", "free", {}),
    "groups, soft-frozen": ("topk", "soft_frozen_decoder", {"group_size": 2}),
    "batch_topk, soft-frozen": ("batch_topk", "soft_frozen_decoder", {}),
    "rescaled, both frozen": ("batch_topk", "both_frozen", {"rescale": True}),
    "relu": ("relu", "free", {}),
    "jump_relu, frozen decoder": ("jump_relu", "frozen_decoder", {"bandwidth": 0.5}),
    "matryoshka, frozen encoder": ("matryoshka", "frozen_encoder", {}),
    "ortho": ("ortho", "free", {"ortho_every": 2}),
}


APART = ("batch_topk, soft-frozen", "jump_relu, frozen decoder", "ortho")
"""Where gradients are also written out and stepped afterwards."""


@pytest.mark.parametrize(("design", "fused"), [*((d, True) for d in DESIGNS), *((d, False) for d in APART)])
def test_steps_from_one_state_agree_with_the_definition(design, fused, source):
    """Three steps in lockstep, so that rounding cannot grow: loss, gradients, weights, moments and scalars."""
    architecture, constraint, fields = DESIGNS[design]
    run = run_of(architecture, constraint, **fields)
    trainer, plain = on_device(run, source), start(run, source, fast=False)
    assert trainer.gpu is not None and plain.gpu is None
    trainer.gpu.fused = fused
    first = {name: tensor.clone() for name, tensor in trainer.sae.state_dict().items()}
    trainer.silent[11:] = 5  # dead from the start
    trainer.settle()
    for step in range(3):
        plain.load_state_dict(trainer.state_dict())
        x = sample(source, step)
        assert float(trainer.step(x)) == pytest.approx(plain.step(x), rel=1e-4)
        for name, grad in trainer.grads.items():
            if not fused or not name.startswith("W_"):
                wanted = plain.grads[name]
                assert (grad - wanted).norm() <= 1e-4 * wanted.norm() + 1e-6, (step, name)
        assert set(trainer.grads) == set(trainer.trained) or fused
        for name, wanted in plain.sae.state_dict().items():
            found = trainer.sae.state_dict()[name]
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=3e-4, equal_nan=True)
            moved = name in trainer.trained or name == "threshold" and run.sae.selects_by_rank
            assert torch.equal(found, first[name]) != moved, name
        for name, i in itertools.product(trainer.trained, (0, 1)):
            torch.testing.assert_close(trainer.moments[name][i], plain.moments[name][i], rtol=1e-3, atol=1e-5)
        assert torch.equal(trainer.silent, plain.silent)
        assert float(trainer.l0) == pytest.approx(plain.l0) and trainer.penalty == pytest.approx(plain.penalty)


@pytest.fixture
def as_a_gpu_rounds():
    with rounded():
        yield


@pytest.mark.usefixtures("as_a_gpu_rounds")
@pytest.mark.parametrize("architecture", ["batch_topk", "relu"])
def test_half_precision_holds_the_loss(architecture, source):
    """Within 0.5 %, while training and on other data."""
    run = run_of(architecture, batch=24, dead_after=100)
    half, full = on_device(run, source, torch.bfloat16), start(run, source, fast=False)
    x, nobody = source.batch(2000, 0, EVALUATION).x, torch.zeros(14, dtype=torch.bool, device=HERE)

    @torch.no_grad()
    def loss(trainer: Trainer) -> float:
        return float(training_loss(trainer.sae, x, trainer.sae.threshold, 0.0, nobody, False).reconstruction)

    first = loss(full)
    losses = np.array([[float(t.step(sample(source, step, 24))) for t in (half, full)] for step in range(5)])
    assert losses[:, 0].mean() == pytest.approx(losses[:, 1].mean(), rel=5e-3)
    assert loss(half) == pytest.approx(loss(full), rel=5e-3)
    assert loss(full) < 0.97 * first
    assert half.gpu is not None and half.sae.W_enc.dtype == torch.float32
    assert {name: t.dtype for name, t in half.gpu.shadows.items()} == dict.fromkeys(["W_enc", "W_dec"], torch.bfloat16)
    for name, shadow in half.gpu.shadows.items():
        torch.testing.assert_close(shadow.float(), getattr(half.sae, name).data, rtol=2**-7, atol=0)


class TestRoom:
    """Above its share of active codes a step is the definition's."""

    def test_a_budget_above_the_share_is_ranked_densely(self, source, monkeypatch):
        monkeypatch.setattr(device, "DENSE_SHARE", 0.14)  # 2 of 14 are more
        run = run_of()
        trainer, plain = on_device(run, source), start(run, source, fast=False)
        x = sample(source, 0)
        assert float(trainer.step(x)) == plain.step(x)
        assert all(torch.equal(trainer.grads[name], grad) for name, grad in plain.grads.items())
        for name, wanted in plain.sae.state_dict().items():
            torch.testing.assert_close(trainer.sae.state_dict()[name], wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(trainer.silent, plain.silent)

    def test_the_step_for_which_there_is_no_room_is_taken_again(self, source, monkeypatch):
        monkeypatch.setattr(device, "DENSE_SHARE", 0.2)
        run = run_of("relu")
        trainer, plain = on_device(run, source), start(run, source, fast=False)
        assert trainer.gpu is not None
        taken = []
        for way in ("_select", "_dense"):
            own = getattr(trainer.gpu, way)
            monkeypatch.setattr(trainer.gpu, way, lambda *a, way=way, own=own: taken.append(way) or own(*a))
        for step, bias in enumerate((0.5, 0.5, -1.0, -1.0)):  # nearly everything active, then little
            for t in (trainer, plain):
                t.sae.b_enc.data.fill_(bias)
            x = sample(source, step)
            assert float(trainer.step(x)) == pytest.approx(plain.step(x), rel=1e-4)
            assert trainer.steps_done == step + 1
            assert (float(trainer.l0) > 4) == (bias > 0)
        assert taken == ["_select", "_dense", "_dense", "_dense", "_select"]  # once more is known of the step before

    def test_a_stop_seen_late_goes_back(self, source, monkeypatch):
        """Looking every four steps, and full only in the third: it and those after it are taken again."""
        monkeypatch.setattr(device, "LOOK_EVERY", 4)
        run = run_of("relu", steps=8)
        trainer, plain = on_device(run, source), start(run, source, fast=False)
        done, select = [], device.select.select_above

        def crowded(*args):
            codes, overflow = select(*args)
            done.append(trainer.steps_done)
            return codes, overflow | (trainer.steps_done == 2)

        monkeypatch.setattr(device.select, "select_above", crowded)
        train_many([trainer], source, 8)
        train_many([plain], source, 8)
        assert trainer.steps_done == 8
        assert done[:5] == [0, 1, 2, 3, 4] and done.count(2) == 1 and done.count(3) == 2
        for name, wanted in plain.sae.state_dict().items():
            torch.testing.assert_close(trainer.sae.state_dict()[name], wanted, rtol=1e-2, atol=1e-3)


class TestDivergence:
    @pytest.mark.parametrize("architecture", ["batch_topk", "relu"])
    def test_nan_in_the_data_is_an_error_and_leaves_the_state(self, architecture, source, monkeypatch):
        """It is found when the host looks; until then nothing moves."""
        monkeypatch.setattr(device, "LOOK_EVERY", 4)
        trainer, twin = (on_device(run_of(architecture), source) for _ in range(2))
        for step in range(2):
            trainer.step(sample(source, step))
            twin.step(sample(source, step))
        bad = sample(source, 2)
        bad[3, 2] = torch.nan
        trainer.step(bad)
        trainer.step(sample(source, 3))
        with pytest.raises(DivergedError, match=f"loss=nan at step 2 of run {trainer.run.key()}: the data hold NaN"):
            for step in range(4, 8):
                trainer.step(sample(source, step))
        assert trainer.steps_done == 2 and same(trainer, twin)
        x = sample(source, 2)
        assert float(trainer.step(x)) == float(twin.step(x))
        assert same(trainer, twin)

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    def test_the_end_of_training_waits_for_it(self, source):
        trainer = on_device(run_of(rate=1e30), source)
        with pytest.raises(DivergedError, match="at step 1 of run"):
            train_many([trainer], source, 5)
        assert all(torch.isfinite(t).all() for n, t in trainer.sae.state_dict().items() if n.startswith("W_"))


class TestState:
    @pytest.mark.parametrize("architecture", ["matryoshka", "jump_relu"])
    def test_stopping_and_starting_changes_no_bit(self, architecture, source, tmp_path):
        run = run_of(architecture, "soft_frozen_decoder")
        whole, first, second = (on_device(run, source) for _ in range(3))
        train_many([whole], source, 4)
        train_many([first], source, 2)
        first.save(tmp_path / "state")
        assert second.resume(tmp_path / "state") and same(first, second)
        train_many([second], source, 4)
        assert same(whole, second) and not same(whole, first)

    def test_another_path_goes_on_from_it(self, source):
        """Both ways, within rounding of the definition's own steps."""
        run = run_of()
        trainer, plain = on_device(run, source), start(run, source, fast=False)
        train_many([trainer], source, 2)
        plain.load_state_dict(trainer.state_dict())
        assert isinstance(plain.l0, float) and isinstance(plain.log_penalty, float)
        back = on_device(run, source)
        back.load_state_dict(plain.state_dict())
        assert same(back, trainer) and same(plain, trainer)
        x = sample(source, 2)
        assert float(back.step(x)) == float(trainer.step(x)) == pytest.approx(plain.step(x), rel=1e-4)

    def test_a_state_set_from_outside_forgets_what_went_wrong(self, source):
        trainer, twin = (on_device(run_of(), source) for _ in range(2))
        before = {name: tensor.clone() for name, tensor in trainer.state_dict().items()}
        assert trainer.gpu is not None
        trainer.gpu.next_look = 9
        trainer.step(torch.full((4, 9), torch.nan, device=HERE))
        trainer.load_state_dict(before)
        assert trainer.steps_done == 0
        x = sample(source, 0)
        assert float(trainer.step(x)) == float(twin.step(x)) and same(trainer, twin)

    def test_many_on_one_stream_are_as_alone(self, source):
        runs = [run_of("topk"), run_of("relu")]
        together = [on_device(run, source) for run in runs]
        losses: list = []
        train_many(together, source, 2, watch=lambda trainer, loss: losses.append((trainer, loss)))
        assert [t for t, _ in losses] == 2 * together and all(np.isfinite(float(loss)) for _, loss in losses)
        for run, trainer in zip(runs, together, strict=True):
            alone = on_device(run, source)
            train_many([alone], source, 2)
            assert same(alone, trainer)


def test_triton_is_taken_where_it_can_be(source, monkeypatch):
    """On a CUDA device, unless the definition is asked for or the SAE is spread over processes."""
    run = run_of()
    fastest = "triton" if HERE == "cuda" else "cpu" if kernels.fast_path(torch.zeros(1)) else "dense"
    assert [start(run, source, fast).path for fast in (None, True, False)] == [fastest, fastest, "dense"]
    monkeypatch.setattr(kernels, "triton_path", lambda tensor: True)
    assert start(run, source).path == start(run, source, fast=True).path == "triton"
    assert start(run, source, fast=False).path == "dense"
    monkeypatch.setattr(kernels, "triton_path", lambda tensor: False)
    monkeypatch.setattr(kernels, "fast_path", lambda tensor: False)
    assert start(run, source).path == start(run, source, fast=True).path == "dense"


@gpu
@pytest.mark.gpu
class TestOnAGPU:
    BIG = SourceSpec("constant", n_features=1024, d_model=128, expected_l0=8.0)

    def run_of(self, architecture: str, **fields) -> RunSpec:
        sae = SAESpec(architecture, d_model=128, n_latents=4096, l0=16, aux_k=32, dead_after=20, **fields)
        return RunSpec(sae, self.BIG, ConstraintSpec(), TrainingSpec(steps=100, batch_size=512, learning_rate=1e-3))

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_half_precision_holds_the_loss(self, architecture, monkeypatch):
        """60 steps on their own, with dead latents: within 0.5 % of the definition in float32."""
        monkeypatch.setattr(device, "DENSE_SHARE", 1 / 16)
        source, run = Superposition(self.BIG, "cuda"), self.run_of(architecture)
        half, full = start(run, source), start(run, source, fast=False)
        assert half.path == "triton" and full.path == "dense"
        found: dict[int, list[float]] = {}
        train_many([half, full], source, 60, watch=lambda t, loss: found.setdefault(id(t), []).append(float(loss)))
        a, b = (np.mean(found[id(t)][-10:]) for t in (half, full))
        assert a == pytest.approx(b, rel=5e-3)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_no_step_waits_for_the_device(self, architecture, monkeypatch):
        """Between two looks, once the kernels are compiled; nor does drawing the batches."""
        monkeypatch.setattr(device, "DENSE_SHARE", 1 / 8)
        source = Superposition(self.BIG, "cuda")
        trainer = start(self.run_of(architecture), source)
        train_many([trainer], source, 30)
        assert trainer.gpu is not None
        trainer.gpu.next_look = 1000

        def watch(trainer: Trainer, _: object) -> None:
            torch.cuda.set_sync_debug_mode("error" if trainer.steps_done < 40 else "default")  # the end waits

        try:
            train_many([trainer], source, 41, watch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert trainer.steps_done == 41

    @pytest.mark.parametrize("architecture", ["matryoshka", "jump_relu", "ortho"])
    def test_stopping_and_starting_changes_no_bit(self, architecture):
        source, run = Superposition(self.BIG, "cuda"), self.run_of(architecture)
        whole, first, second = (start(run, source) for _ in range(3))
        train_many([whole], source, 40)
        train_many([first], source, 20)
        second.load_state_dict(first.state_dict())
        train_many([second], source, 40)
        assert same(whole, second)

    @pytest.mark.parametrize("where", ["cpu", "cuda"])
    def test_batches_made_ahead_arrive_whole(self, where):
        source = Superposition(self.BIG, where)
        feed = Feed(source, 512, TRAINING, torch.device("cuda"))
        for step in (0, 1, 2, 7, 7, 3):
            assert torch.equal(feed(step), source.batch(512, step, TRAINING).x.to("cuda"))
            feed.prepare(step + 1)

    def test_a_source_on_the_cpu_trains_an_sae_on_the_gpu(self):
        source, run = Superposition(self.BIG), self.run_of("relu")
        trainer = Trainer(loop.beginning(run, source).to("cuda"), run)
        losses: list[float] = []
        train_many([trainer], source, 30, watch=lambda _, loss: losses.append(float(loss)))
        assert losses[-1] < 0.8 * losses[0]
