"""Codes as a second opinion on the teacher's labels."""

from __future__ import annotations

import pytest
import torch
from test_dimensions import BOOK, CLASSES, METHODS, Case, started

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.vqseg import VQSeg, VQSegConfig

ASKED = METHODS["VQ-Seg, codes asked"]


@pytest.mark.parametrize("decoder_input", ["continuous", "quantized"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_teacher_says_the_same_where_its_codes_are_asked(ndim, decoder_input):
    case = Case(VQSeg, {**ASKED.keys, "decoder_input": decoder_input}, set())
    method, batch = started(case, ndim)
    with torch.no_grad():
        assert torch.equal(method.teacher_logits(batch.unlabeled), method.teacher(batch.unlabeled))


def test_a_label_that_no_labelled_token_of_its_code_had_is_not_learned():
    method, batch = started(ASKED, 2)
    labels, confidence, metrics = method.teach(batch.unlabeled)
    assert (confidence >= 0).all()
    assert metrics["unknown_codes"] == 1
    assert metrics["kept_by_codes"] == 1
    method.code_classes.counts[:, 1] = 1.0  # every code is class 1's
    labels, confidence, metrics = method.teach(batch.unlabeled)
    assert 0 < (labels == 1).float().mean() < 1, "or this shows nothing"
    assert torch.equal(confidence >= 0, labels == 1)
    assert metrics["unknown_codes"] == 0
    assert metrics["kept_by_codes"] == (labels == 1).float().mean()


def test_labelled_images_alone_are_counted_after_a_step():
    method, batch = started(ASKED, 2)
    method.before_step(0.5)
    method.terms(batch, 0.5)
    assert method.code_classes.counts.sum() == 0
    method.after_step()
    indices = method.codebooks.seen[0][0]
    labeled = indices[: len(batch.labeled)]
    assert len(indices) == len(batch.labeled) + len(batch.unlabeled)
    assert method.code_classes.counts.sum().item() == pytest.approx(labeled.numel())
    shares = torch.stack([(batch.target[0] == label).float().mean() for label in range(CLASSES)])
    torch.testing.assert_close(method.code_classes.counts.sum(0) / labeled.numel(), shares)
    assert set(method.code_classes.counts.sum(1).nonzero().flatten().tolist()) == set(labeled.flatten().tolist())


def test_counts_are_in_the_checkpoint():
    method, batch = started(ASKED, 2)
    method.terms(batch, 0.5)
    method.after_step()
    other, _ = started(ASKED, 2)
    other.load_state(method.state())
    assert torch.equal(other.code_classes.counts, method.code_classes.counts)


def test_without_it_nothing_is_counted_and_without_codes_it_is_refused():
    method, _ = started(Case(VQSeg, BOOK, set()), 2)
    assert method.code_classes is None
    assert "code_classes" not in method.state()
    with pytest.raises(ConfigError, match="code_agreement"):
        VQSegConfig(quantize=False, perturbation="dropout", code_agreement=0.1)
    with pytest.raises(ConfigError, match="code_agreement"):
        VQSegConfig(use_unlabeled=False, code_agreement=0.1)
