"""``SAE.encode_sparse`` by the Triton path is ``encode``, and gives up where there is no room."""

import pytest
import torch

from saecore import kernels
from saecore.kernels.batch_topk import triton as select
from saecore.saes import base
from saecore.spec import ARCHITECTURES, SAESpec

pytestmark = pytest.mark.usefixtures("guarded")


@pytest.fixture(autouse=True)
def by_triton(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "triton_path", lambda tensor: True)


def sae_of(architecture: str, generator: torch.Generator, device: str, **fields) -> base.SAE:
    sae = base.SAE(SAESpec(architecture, d_model=20, n_latents=70, l0=4, **fields))
    for weight in (sae.W_enc, sae.W_dec, sae.b_dec):
        weight.data = torch.randn(weight.shape, generator=generator)
    sae.b_enc.data.fill_(-6.0 if sae.spec.has_encoder_bias else 0.0)
    if architecture != "relu":
        sae.threshold.fill_(1.2 if sae.spec.rescale else 3.0 if architecture == "jump_relu" else 8.0)
    return sae.to(device)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "batch_topk, rescaled"])
def test_codes_are_those_of_encode(architecture, generator, device):
    name, _, rescaled = architecture.partition(", ")
    sae = sae_of(name, generator, device, rescale=bool(rescaled))
    x = torch.randn(5, 20, generator=generator).to(device)
    wanted, found = sae.encode(x).detach().cpu(), torch.from_numpy(sae.encode_sparse(x).dense(70))
    assert 0 < (wanted > 0).sum() <= base.ROOM * 4 * 5
    assert torch.equal(found > 0, wanted > 0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_without_room_the_batch_is_encoded_densely(generator, device, monkeypatch):
    sae, x = sae_of("batch_topk", generator, device), torch.randn(4, 20, generator=generator).to(device)
    sae.threshold.fill_(-99.0)
    seen, fused = [], select.encode_above
    monkeypatch.setattr(select, "encode_above", lambda *a: seen.append(fused(*a)) or seen[-1])
    found = torch.from_numpy(sae.encode_sparse(x).dense(70))
    assert len(seen) == 1 and bool(seen[0][1])
    assert torch.equal(found, sae.encode(x).detach().cpu())


def test_a_missing_threshold_and_bad_input_are_errors(generator, device):
    sae, x = sae_of("batch_topk", generator, device), torch.ones(3, 20, device=device)
    sae.threshold.fill_(torch.nan)
    with pytest.raises(ValueError, match="this batch_topk SAE has no inference threshold: train it or call"):
        sae.encode_sparse(x)
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="x holds NaN or infinity in 1 of 3 rows"):
        sae.encode_sparse(x)
