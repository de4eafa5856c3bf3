"""The quantiser: nearest codes, gradients, codebook initialisation, restart and state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_vqseg.modules.vq.quantizer import VectorQuantizer
from nnunetv2_vqseg.modules.vq.usage import CodebookUsage

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"code_dim": 4, "normalize": True},
    "projected, raw": {"code_dim": 4, "normalize": False},
    "literal": {"code_dim": None, "normalize": False},
}


def build(setting: str, **changes: Any) -> VectorQuantizer:
    """K = 50, C = 6, with a mapping that is no longer the identity."""
    arguments = {"num_codes": 50, "entropy_tokens": 1000, "codebook_trains_features": True, "restart_after": 0}
    quantizer = VectorQuantizer(6, **{**arguments, **SETTINGS[setting], **changes})
    with torch.no_grad():
        quantizer.mapping.weight += 0.3 * torch.randn_like(quantizer.mapping.weight)
    return quantizer


def plain_codes(quantizer: VectorQuantizer) -> Tensor:
    codes = quantizer.codebook @ quantizer.mapping.weight.T
    return codes / codes.norm(dim=1, keepdim=True) if quantizer.normalize else codes


def plain_forward(quantizer: VectorQuantizer, z: Tensor) -> tuple[Tensor, ...]:
    """Eq. 2, straight-through, L_vq and entropy as written down, every matrix in full; embedding, tokens and codes."""
    batch, _, height, width = z.shape
    t = quantizer.project_in(z).permute(0, 2, 3, 1).flatten(0, 2)
    if quantizer.normalize:
        t = t - t.mean(dim=1, keepdim=True)
        t = t / (t.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        t = t / t.norm(dim=1, keepdim=True)
    codes = plain_codes(quantizer)
    squared = (t[:, None] - codes).square().sum(dim=2)
    indices = squared.argmin(dim=1)
    c = codes[indices]
    loss = (t.detach() - c).square().mean() + quantizer.beta * (t - c.detach()).square().mean()
    scale = 1.0 if quantizer.normalize else (squared.mean() / 2).detach()
    p = (-squared / (scale * quantizer.entropy_temperature)).softmax(dim=1)
    entropy = torch.special.entr(p).sum(dim=1).mean() - torch.special.entr(p.mean(dim=0)).sum()
    straight_through = t + (c - t).detach()
    features = quantizer.project_out(straight_through.view(batch, height, width, -1).permute(0, 3, 1, 2))
    return features, indices.view(batch, height, width), loss, entropy, features, t.detach(), codes.detach()


@pytest.mark.parametrize("setting", SETTINGS)
def test_values_and_gradients_equal_autograd_of_the_plain_version(setting: str) -> None:
    quantizer = build(setting, entropy_temperature=0.5).double()
    z = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    weight = torch.randn_like(z)

    def run(forward: Any) -> tuple[Any, dict[str, Tensor]]:
        leaf = z.clone().requires_grad_()
        quantizer.zero_grad()
        output = forward(leaf)
        ((output[0] * weight).sum() + 2.0 * output[2] + 3.0 * output[3]).backward()
        gradients = {name: parameter.grad.clone() for name, parameter in quantizer.named_parameters()}
        return output, {**gradients, "z": leaf.grad}

    output, gradients = run(quantizer)
    expected_output, expected = run(lambda leaf: plain_forward(quantizer, leaf))
    for ours, theirs in zip(output, expected_output, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert gradients.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(gradients[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_the_tasks_gradient_passes_the_literal_quantiser_unchanged() -> None:
    quantizer = build("literal")
    z = torch.randn(2, 6, 3, 3, requires_grad=True)
    upstream = torch.randn(2, 6, 3, 3)
    quantizer(z).quantized.backward(upstream)
    assert torch.equal(z.grad, upstream)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_mapping_learns_from_the_embedding_loss_alone(setting: str) -> None:
    quantizer = build(setting)
    output = quantizer(torch.randn(2, 6, 3, 3, requires_grad=True))
    assert torch.autograd.grad(output.quantized.sum(), quantizer.mapping.weight, allow_unused=True) == (None,)
    assert torch.autograd.grad(output.loss, quantizer.mapping.weight)[0].abs().sum() > 0


@pytest.mark.parametrize("setting", SETTINGS)
def test_quantized_features_are_the_embedded_codes(setting: str) -> None:
    quantizer = build(setting)
    output = quantizer(torch.randn(2, 6, 5, 4))
    torch.testing.assert_close(output.quantized, quantizer.embed(output.indices))
    torch.testing.assert_close(quantizer.codes(), plain_codes(quantizer))


@pytest.mark.parametrize("setting", SETTINGS)
def test_displacement_takes_one_code_to_another(setting: str) -> None:
    quantizer = build(setting)
    before, after = torch.randint(50, (2, 3, 5, 4))
    moved = quantizer.embed(before) + quantizer.displacement(before, after)
    torch.testing.assert_close(moved, quantizer.embed(after))
    assert quantizer.displacement(before, before).abs().max() == 0
    if setting == "literal":
        assert not moved.requires_grad
        return
    # Every parameter DDP waits for gets a gradient, but the decoder cannot move codes.
    move = quantizer.displacement(before, after)
    mapping, *projection = torch.autograd.grad(
        move.square().sum(), [quantizer.mapping.weight, *quantizer.project_out.parameters()], allow_unused=True
    )
    assert mapping is None
    assert all(gradient is not None for gradient in projection)


@pytest.mark.parametrize("setting", SETTINGS)
def test_volumes_are_quantised_as_images_of_the_same_voxels(setting: str) -> None:
    flat, volume = build(setting), build(setting, ndim=3)
    state = {key: value[..., None] if value.ndim == 4 else value for key, value in flat.state_dict().items()}
    volume.load_state_dict(state)
    z = torch.randn(2, 6, 3, 4, 5)
    results = []
    for quantizer, features in ((flat, z.flatten(2, 3)), (volume, z)):
        torch.manual_seed(1)
        leaf = features.clone().requires_grad_()
        output = quantizer(leaf)
        moved = quantizer.displacement(output.indices, output.indices.flip(0))
        (output.loss + output.entropy + (output.quantized + moved).square().mean()).backward()
        assert output.quantized.shape == moved.shape == features.shape
        assert output.indices.shape == (2, *features.shape[2:])
        images = (output.quantized, output.embedded, moved, leaf.grad)
        results.append([*(values.reshape(2, 6, -1) for values in images), output.indices.flatten(), *output[2:4]])
    torch.testing.assert_close(results[1], results[0])
    for quantizer, features in ((flat, z), (volume, z.flatten(2, 3))):
        with pytest.raises(ValueError, match="features must be"):
            quantizer(features)


def test_codes_are_those_of_float32_under_autocast() -> None:
    quantizer = build("literal", num_codes=500)
    z = torch.randn(2, 6, 8, 8)
    expected, book = quantizer(z), quantizer.codes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(z)
        half = quantizer(z.bfloat16())
        assert torch.equal(quantizer.codes(), book)
    assert torch.equal(output.indices, expected.indices)
    assert torch.equal(output.loss, expected.loss)
    assert half.quantized.dtype == torch.bfloat16
    assert half.loss.dtype == torch.float32


def test_codebook_that_does_not_train_features_moves_projection_and_mapping_only() -> None:
    losses, gradients = {}, {}
    for trains in (True, False):
        torch.manual_seed(0)
        quantizer = build("default", codebook_trains_features=trains)
        z = torch.randn(3, 6, 4, 5, requires_grad=True)
        output = quantizer(z)
        losses[trains] = torch.stack((output.loss, output.entropy, output.embedded.square().mean()))
        losses[trains].sum().backward()
        gradients[trains] = [
            quantizer.project_in.weight.grad,
            quantizer.mapping.weight.grad,
            quantizer.project_out.weight.grad,
            z.grad,
        ]
    torch.testing.assert_close(losses[False], losses[True])
    torch.testing.assert_close(gradients[False][:3], gradients[True][:3])
    assert gradients[False][0].abs().sum() > 0
    assert gradients[True][3].abs().sum() > 0
    assert gradients[False][3] is None


def test_task_trains_features_whoever_trains_the_codebook() -> None:
    for trains in (True, False):
        z = torch.randn(3, 6, 4, 5, requires_grad=True)
        build("default", codebook_trains_features=trains)(z).quantized.square().sum().backward()
        assert z.grad.abs().sum() > 0


def test_entropy_is_a_training_term() -> None:
    z = torch.randn(1, 6, 4, 4)
    assert build("default")(z).entropy < 0
    assert build("default").eval()(z).entropy == 0
    assert build("default", entropy_tokens=0)(z).entropy == 0


def test_memory_grows_with_tokens_and_codes_but_not_their_product(trace) -> None:
    quantizer = VectorQuantizer(8, num_codes=16384, code_dim=4, entropy_tokens=512)
    z = torch.randn(2, 8, 64, 64, requires_grad=True)
    with trace() as recorded:
        output = quantizer(z)
        (output.quantized.sum() + output.loss + output.entropy).backward()
    # Forward and backward: nothing above one chunk of the entropy term, where (N, K) has 134 million elements.
    assert recorded.largest <= 2**22


def test_forward_compiles_into_one_graph() -> None:
    quantizer = build("default", entropy_tokens=20)
    z = torch.randn(2, 6, 4, 4)
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    torch.manual_seed(1)
    expected = quantizer(z)
    torch.manual_seed(1)
    for ours, theirs in zip(compiled(z), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("setting", SETTINGS)
def test_samples_become_codes(setting: str) -> None:
    quantizer = build(setting)
    tokens = quantizer.tokens(torch.randn(2, 6, 8, 8)).detach()
    quantizer.initialize_from_samples(tokens)
    assert quantizer.initialized
    distances = torch.cdist(quantizer.codes().detach(), tokens, compute_mode="donot_use_mm_for_euclid_dist")
    nearest, source = distances.min(dim=1)
    assert nearest.max() < 1e-4
    assert len(source.unique()) == 50


@pytest.mark.parametrize("setting", SETTINGS)
def test_few_samples_all_become_codes_and_the_others_lie_near_them(setting: str) -> None:
    quantizer = build(setting)
    tokens = quantizer.tokens(torch.randn(1, 6, 3, 3)).detach()
    quantizer.initialize_from_samples(tokens.repeat(20, 1))
    codes = quantizer.codes().detach()
    assert torch.cdist(tokens, codes, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1).max() < 1e-4
    assert torch.pdist(codes).min() > 0
    assert torch.cdist(codes, tokens).amin(dim=1).max() < torch.pdist(tokens).mean()
    if quantizer.normalize:
        torch.testing.assert_close(codes.norm(dim=1), torch.ones(50))


def test_restart_puts_the_mapped_code_on_a_token() -> None:
    for setting in SETTINGS:
        quantizer = build(setting, restart_after=3)
        tokens = quantizer.tokens(torch.randn(1, 6, 4, 4)).detach()
        alive = torch.arange(40)
        before = quantizer.codes().detach()
        assert [quantizer.observe(alive, tokens) for _ in range(3)] == [0, 0, 10]
        after = quantizer.codes().detach()
        torch.testing.assert_close(after[:40], before[:40])
        nearest, source = torch.cdist(after[40:], tokens).min(dim=1)
        assert nearest.max() < 1e-2
        torch.testing.assert_close(after[40:], tokens[source], atol=1e-4, rtol=1e-4)
        assert len(source.unique()) == 10


def test_restarts_are_one_a_token_and_the_rest_waits() -> None:
    quantizer = build("default", restart_after=1)
    tokens = F.normalize(torch.randn(4, 4), dim=1)
    used = torch.arange(40)
    assert quantizer.observe(used, tokens) == 4
    assert quantizer.observe(used) == 0
    assert quantizer.observe(used, tokens.repeat(10, 1)) == 10


def test_codes_in_use_and_never_restarting_quantisers_keep_their_book() -> None:
    quantizer = build("default", restart_after=0)
    book = quantizer.codebook.clone()
    for _ in range(5):
        assert quantizer.observe(torch.zeros(3, dtype=torch.long), torch.randn(3, 4)) == 0
    assert torch.equal(quantizer.codebook, book)


def test_network_state_holds_parameters_and_codebook_only() -> None:
    projections = {f"project_{side}.{kind}" for side in ("in", "out") for kind in ("weight", "bias")}
    assert set(build("default").state_dict()) == {"codebook", "mapping.weight"} | projections
    assert set(build("literal").state_dict()) == {"codebook", "mapping.weight"}
    assert "codebook" not in dict(build("default").named_parameters())


def test_bookkeeping_survives_a_round_trip(tmp_path: Path) -> None:
    first, tokens = build("default", restart_after=3), F.normalize(torch.randn(60, 4), dim=1)
    first.initialize_from_samples(tokens)
    for _ in range(2):
        first.observe(torch.arange(30), tokens)
    torch.save(first.bookkeeping_state(), tmp_path / "state.pt")
    second = build("default", restart_after=3)
    second.load_bookkeeping_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.initialized
    assert second.observe(torch.arange(30), tokens) == 20
    assert first.observe(torch.arange(30), tokens) == 20
    with pytest.raises(ValueError, match="50 codes"):
        build("default", num_codes=51).load_bookkeeping_state(first.bookkeeping_state())


def test_a_copy_is_independent() -> None:
    quantizer = build("default", restart_after=1)
    other = copy.deepcopy(quantizer)
    z = torch.randn(1, 6, 3, 3)
    torch.testing.assert_close(other.eval()(z).quantized, quantizer.eval()(z).quantized)
    other.observe(torch.arange(10), other.tokens(z).detach())
    assert not torch.equal(other.codebook, quantizer.codebook)
    assert quantizer.bookkeeping_state()["steps_since_use"].sum() == 0


def _observe_on_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(7)
    quantizer = build("default", num_codes=20, restart_after=1)
    torch.manual_seed(rank)
    tokens = F.normalize(torch.randn(30, 4), dim=1)
    quantizer.initialize_from_samples(tokens)
    started = quantizer.codebook.clone()
    # Codes 0 to 7 are used on rank 0, 8 to 15 on rank 1, so only the last four are dead.
    restarted = quantizer.observe(torch.arange(8) + 8 * rank, tokens)
    usage = CodebookUsage(20)
    usage.add(torch.arange(8) + 8 * rank)
    usage.reduce()
    result = {"started": started, "book": quantizer.codebook, "restarted": restarted, "used": usage.utilization}
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_agree_on_use_and_book(tmp_path: Path) -> None:
    mp.spawn(_observe_on_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["started"], second["started"])
    assert torch.equal(first["book"], second["book"])
    assert first["restarted"] == second["restarted"] == 4
    assert torch.equal(first["book"][:16], first["started"][:16])
    assert not torch.equal(first["book"][16:], first["started"][16:])
    assert first["used"] == second["used"] == pytest.approx(16 / 20)


def test_wrong_input_is_named() -> None:
    quantizer = build("default")
    with pytest.raises(ValueError, match=r"\(B, 6, H, W\)"):
        quantizer(torch.randn(1, 5, 4, 4))
    with pytest.raises(ValueError, match="0 tokens"):
        quantizer.initialize_from_samples(torch.empty(0, 4))
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        quantizer.initialize_from_samples(torch.randn(3, 6))
    with pytest.raises(ValueError, match="num_codes"):
        VectorQuantizer(6, num_codes=1)
    with pytest.raises(ValueError, match="temperature"):
        VectorQuantizer(6, entropy_temperature=0.0)
    with pytest.raises(ValueError, match="2 or 3"):
        VectorQuantizer(6, ndim=4)
    with pytest.raises(ValueError, match="negative"):
        VectorQuantizer(6, beta=-1.0)
    with pytest.raises(ValueError, match="at least 1"):
        VectorQuantizer(0)
