"""The codebook: taming's numbers by default, closed forms of the other ways to learn codes, restarts, usage."""

import pytest
import torch
import torch.nn.functional as F
from small_models import DDCONFIG
from taming.modules.vqvae.quantize import VectorQuantizer2

from ldm.models.autoencoder import VQModel
from ldm.modules.quantize import KINDS, Codebook, CodeUsage


def latents(seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def rows(latent: torch.Tensor) -> torch.Tensor:
    return latent.movedim(1, -1).flatten(0, 2)


def test_the_plain_codebook_is_that_of_taming() -> None:
    ours, theirs = Codebook(8, 3), VectorQuantizer2(8, 3, beta=0.25)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["embedding.weight"]
    theirs.load_state_dict(ours.state_dict())
    for got, expected in zip(ours(latents())[:2], theirs(latents())[:2], strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(ours(latents())[2][2], theirs(latents())[2][2])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_nearest_of_its_codes_and_gradients_pass_through(kind: str) -> None:
    torch.manual_seed(0)
    codebook = Codebook(8, 3, kind=kind).eval()
    latent = latents().requires_grad_()
    quantized, loss, (_, _, indices) = codebook(latent)
    points = F.normalize(rows(latent), dim=1) if kind == "cosine" else rows(latent)
    codes = codebook.embedding.weight
    assert torch.equal(indices, torch.cdist(points, codes).argmin(1))
    assert torch.allclose(rows(quantized), codes[indices], atol=1e-6)
    assert torch.allclose(rows(codebook.get_codebook_entry(indices, (2, 4, 4, 3))), codes[indices])
    assert loss.item() == pytest.approx(1.25 * (points - codes[indices]).square().mean().item(), rel=1e-5)
    through = torch.autograd.grad(quantized.sum(), latent)[0]
    expected = torch.autograd.grad(points.sum(), latent)[0]
    assert torch.allclose(through, expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_that_are_written_are_the_codes(kind: str) -> None:
    torch.manual_seed(3)  # the random map of simvq has a condition of 4: rounding grows with it
    codebook = Codebook(6, 3, kind=kind)
    codes = F.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    codebook.write(codes)
    assert torch.allclose(codebook.embedding.weight, codes, atol=1e-5)
    codebook.write(-codes[:1], torch.tensor([4]))
    assert torch.allclose(codebook.embedding.weight[4], -codes[0], atol=1e-5)
    assert torch.allclose(codebook.embedding.weight[5], codes[5], atol=1e-5)


def test_cosine_codes_do_not_depend_on_lengths() -> None:
    codebook = Codebook(8, 3, kind="cosine")
    far = codebook(latents(scale=100.0))
    assert torch.equal(far[2][2], codebook(latents())[2][2])
    assert torch.allclose(far[0].norm(dim=1), torch.ones(2, 4, 4), atol=1e-6)


def test_ema_codes_are_the_means_of_the_latents_that_chose_them() -> None:
    codebook = Codebook(2, 3, kind="ema", decay=0.5)
    codebook.write(torch.tensor([[0.0, 0, 0], [9, 0, 0]]))
    latent = torch.tensor([[1.0, 0, 0], [3, 0, 0], [8, 0, 0]]).T.view(1, 3, 1, 3)
    codebook.eval()(latent)
    assert codebook.embedding.weight[0, 0] == 0  # only training moves codes
    _, loss, _ = codebook.train()(latent)
    assert not loss.requires_grad and [p for p in codebook.parameters() if p.requires_grad] == []
    # counts 1 -> 0.5 + 0.5 n, sums likewise: (0 + 0.5 * 4) / 1.5 and (4.5 + 0.5 * 8) / 1
    assert torch.allclose(codebook.embedding.weight[:, 0], torch.tensor([4 / 3, 8.5]), atol=1e-4)
    for _ in range(40):
        codebook(latent)
    assert torch.allclose(codebook.embedding.weight[:, 0], torch.tensor([2.0, 8.0]), atol=1e-4)


def test_simvq_moves_all_codes_where_plain_moves_the_chosen() -> None:
    moved = {}
    for kind in ("plain", "simvq"):
        torch.manual_seed(0)
        codebook = Codebook(8, 3, kind=kind)
        before = codebook.embedding.weight.detach().clone()
        optimizer = torch.optim.SGD([p for p in codebook.parameters() if p.requires_grad], lr=0.1)
        _, loss, (_, _, indices) = codebook(before[:1].T.view(1, 3, 1, 1) + 0.001)
        loss.backward()
        optimizer.step()
        assert indices.tolist() == [0]
        moved[kind] = (codebook.embedding.weight.detach() != before).any(1).sum().item()
    assert moved == {"plain": 1, "simvq": 8}


def test_codes_are_set_to_the_centres_of_clusters() -> None:
    codebook = Codebook(2, 3)
    centres = torch.tensor([[0.0, 0, 0], [10, 0, 0]])
    noise = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    codebook.cluster((centres[:, None] + noise).flatten(0, 1))
    codes = codebook.embedding.weight.detach()
    assert torch.allclose(codes[codes[:, 0].argsort()], centres + noise.mean(1), atol=1e-5)
    with pytest.raises(ValueError, match="1 latents .* 2 codes"):
        codebook.cluster(torch.zeros(1, 3))


def test_codes_that_no_batch_chose_restart_at_latents() -> None:
    torch.manual_seed(0)
    model = VQModel(DDCONFIG, 8, 3, codebook={"restart_every": 2}, use_ema=True)
    with torch.no_grad():
        model.quantize.embedding.weight[1:] += 100.0  # dead
    average = model.model_ema.get_buffer("quantizeembeddingweight").fill_(7.0)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    first = model.quantize.embedding.weight.detach().clone()
    for batch_idx in range(2):
        model.bottleneck(images, batch_idx)
        assert torch.equal(model.quantize.embedding.weight, first)
    assert model.usage["train"].figures()["code_usage"] == 1 / 8
    model.bottleneck(images, 2)
    codes = model.quantize.embedding.weight
    points = rows(model.encode(images))
    assert torch.equal(codes[0], first[0])
    assert (codes[1:, None] - points).norm(dim=2).min(1).values.max() < 1e-6
    assert torch.equal(average[1:], codes[1:]) and (average[0] == 7).all()  # the average forgets what is gone
    assert model.usage["train"].figures()["code_usage"] > 3 / 8


def test_usage_counts_codes_over_batches_and_survives_a_checkpoint() -> None:
    usage = CodeUsage(8)
    for indices in ([0, 1], [2, 3]):
        usage.add(torch.tensor(indices))
    figures = usage.figures()
    assert figures["code_usage"] == 0.5 and figures["perplexity"] == pytest.approx(4.0)  # 2 in either batch
    assert usage.unused().tolist() == [False] * 4 + [True] * 4
    resumed = CodeUsage(8)
    resumed.load_state_dict(usage.state_dict())
    resumed.add(torch.tensor([[4, 5], [6, 7]]))
    assert resumed.figures()["code_usage"] == 1 and resumed.batches == 3
    usage.reset()
    usage.add(torch.tensor([1, 1, 1, 5]))
    assert usage.figures()["perplexity"] == pytest.approx((4 / 3) ** 0.75 * 4**0.25)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="codebook.kind.*'vq'.*plain, ema, cosine, simvq"):
        VQModel(DDCONFIG, 8, 3, codebook={"kind": "vq"})
    with pytest.raises(
        ValueError, match="model.params.codebook has no parameter 'restart'; did you mean 'restart_ever"
    ):
        VQModel(DDCONFIG, 8, 3, codebook={"restart": 5})
    with pytest.raises(ValueError, match="^remap"):
        Codebook(8, 3, remap="used.npy", restart_every=5)


def test_a_model_in_half_precision_looks_codes_up_in_full() -> None:
    torch.manual_seed(0)
    model = VQModel(DDCONFIG, 8, 3).eval()
    latent = latents().bfloat16()
    expected, codes = model.decode(latent.float()), model.quantize.embedding.weight.clone()
    image = model.bfloat16().decode(latent)
    assert image.dtype == torch.bfloat16 and torch.equal(model.quantize.embedding.weight, codes)
    assert torch.allclose(image.float(), expected, atol=0.05 * expected.abs().max().item())
