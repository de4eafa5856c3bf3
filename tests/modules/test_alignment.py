"""PFA and Eq. 11: the contrastive loss is checked against a double loop written from the formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_vqseg.modules.adapter import PostVQFeatureAdapter
from nnunetv2_vqseg.modules.losses.infonce import patch_contrastive_loss


def eq_11_by_hand(adapted, target, temperature, mask):
    """Eq. 11 one patch at a time, sums over j over the kept patches of the same image; then the mean over images."""
    images = []
    for image in range(adapted.shape[0]):
        terms = []
        places = [(y, x) for y in range(adapted.shape[2]) for x in range(adapted.shape[3]) if mask[image, y, x]]
        for y, x in places:
            similarities = {}
            for v, u in places:
                a, b = adapted[image, :, y, x], target[image, :, v, u]
                similarities[v, u] = math.exp(float(a @ b / (a.norm() * b.norm())) / temperature)
            terms.append(-math.log(similarities[y, x] / sum(similarities.values())))
        if len(terms) > 1:  # a single patch has nothing to be told from
            images.append(sum(terms) / len(terms))
    return sum(images) / len(images)


@pytest.mark.parametrize("masked", [False, True])
def test_loss_equals_the_double_loop(masked):
    adapted, target = torch.randn(3, 5, 4, 3), torch.randn(3, 5, 4, 3)
    mask = torch.rand(3, 4, 3) < 0.6 if masked else torch.ones(3, 4, 3, dtype=torch.bool)
    if masked:
        mask[1] = False  # an image of nothing but padding
        assert 3 < mask.sum() < 30
    loss = patch_contrastive_loss(adapted, target, 0.3, mask if masked else None)
    assert loss.item() == pytest.approx(eq_11_by_hand(adapted, target, 0.3, mask), rel=1e-5)


def test_volumes_are_compared_patch_by_patch_too():
    adapted, target, mask = torch.randn(2, 5, 2, 4, 3), torch.randn(2, 5, 2, 4, 3), torch.rand(2, 2, 4, 3) < 0.6
    loss = patch_contrastive_loss(adapted, target, 0.3, mask)
    expected = eq_11_by_hand(adapted.flatten(2, 3), target.flatten(2, 3), 0.3, mask.flatten(1, 2))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_an_image_counts_once_however_many_patches_it_keeps_and_not_with_one():
    adapted, target = torch.randn(3, 5, 4, 3), torch.randn(3, 5, 4, 3)
    mask = torch.ones(3, 4, 3, dtype=torch.bool)
    mask[1].flatten()[2:] = False
    each = [patch_contrastive_loss(adapted[i : i + 1], target[i : i + 1], mask=mask[i : i + 1]) for i in range(3)]
    assert patch_contrastive_loss(adapted, target, mask=mask).item() == pytest.approx(sum(each).item() / 3, rel=1e-5)
    mask[1].flatten()[1:] = False  # one patch is left: its loss would be 0 and halve the others'
    expected = (each[0] + each[2]).item() / 2
    assert patch_contrastive_loss(adapted, target, mask=mask).item() == pytest.approx(expected, rel=1e-5)


def test_golden_value_of_orthogonal_patches():
    """Two patches, features e1 and e2 in place: -log(e^(1/tau) / (e^(1/tau) + 1)), from Eq. 11 by hand, tau = 0.5."""
    features = torch.eye(2).reshape(1, 2, 1, 2) * 7.0
    assert patch_contrastive_loss(features, features, 0.5).item() == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-5)
    swapped = features.flip(3)
    assert patch_contrastive_loss(features, swapped, 0.5).item() == pytest.approx(math.log1p(math.exp(2.0)), rel=1e-5)


def test_patches_outside_the_mask_get_no_gradient_and_are_no_negatives():
    adapted = torch.randn(2, 4, 3, 3, requires_grad=True)
    target = torch.randn(2, 4, 3, 3, requires_grad=True)
    mask = torch.rand(2, 3, 3) < 0.5
    mask[0, 0, :2] = True
    mask[1, 0, :2] = torch.tensor([True, False])
    loss = patch_contrastive_loss(adapted, target, mask=mask)
    loss.backward()
    outside = ~mask[:, None].expand(-1, 4, -1, -1)
    assert (adapted.grad[outside] == 0).all()
    assert (adapted.grad[0][~outside[0]] != 0).any()
    assert target.grad is None
    changed = torch.where(outside, torch.randn_like(target), target)
    torch.testing.assert_close(patch_contrastive_loss(adapted, changed, mask=mask), loss)


def test_nothing_kept_is_zero_with_a_gradient_path():
    adapted = torch.randn(2, 4, 3, 3, requires_grad=True)
    loss = patch_contrastive_loss(adapted, torch.randn(2, 4, 3, 3), mask=torch.zeros(2, 3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (adapted.grad == 0).all()


def test_autocast_and_half_inputs_do_not_change_the_loss():
    adapted, target = torch.randn(2, 64, 4, 4).bfloat16(), torch.randn(2, 64, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = patch_contrastive_loss(adapted, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, patch_contrastive_loss(adapted.float(), target.float()))


@pytest.mark.parametrize(
    ("target", "mask", "temperature"),
    [((2, 4, 3, 2), None, 0.1), ((2, 4, 3, 3), (2, 3, 2), 0.1), ((2, 4, 3, 3), None, 0.0)],
)
def test_impossible_arguments_are_refused(target, mask, temperature):
    mask = None if mask is None else torch.ones(mask, dtype=torch.bool)
    with pytest.raises(ValueError, match="must"):
        patch_contrastive_loss(torch.randn(2, 4, 3, 3), torch.randn(target), temperature, mask)


def test_adapter_resizes_then_projects():
    adapter = PostVQFeatureAdapter(3, 7)
    tokens = torch.randn(2, 3, 5, 4)
    adapted = adapter(tokens, (9, 16))
    resized = F.interpolate(tokens, (9, 16), mode="bilinear", align_corners=False)
    weight, bias = adapter.projection.weight[:, :, 0, 0], adapter.projection.bias
    torch.testing.assert_close(adapted, torch.einsum("oc,bchw->bohw", weight, resized) + bias[:, None, None])


def test_every_token_keeps_about_its_share_when_the_grid_shrinks():
    """Plain bilinear sampling would skip tokens at a factor above 2."""
    tokens = torch.randn(1, 2, 20, 20, requires_grad=True)
    PostVQFeatureAdapter(2, 3)(tokens, (5, 5)).sum().backward()
    share = tokens.grad[0, 0, 4:16, 4:16]  # away from the border, where the weights pile up
    torch.testing.assert_close(share, share.mean().expand_as(share), rtol=0.15, atol=0)
