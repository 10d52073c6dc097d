# Copyright (c) dan_mm contributors. All rights reserved.
import pytest
import reference
import torch
import torch.nn.functional as F

from dan_mm.models import AffinityLoss, CenterLoss, PartitionLoss
from dan_mm.models.losses import affinity_loss, partition_loss

FORMS = ['original', 'paper']


def double(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('batch, classes, dims', [(1, 2, 5), (7, 4, 30)])
def test_affinity_equals_the_reference(form, batch, classes, dims):
    loss = AffinityLoss(classes, dims, form=form).double()
    feats = double(batch, dims)
    labels = torch.arange(batch) % classes
    expected = reference.affinity(feats, loss.centers, labels, form)
    torch.testing.assert_close(
        loss(feats, labels), expected, rtol=1e-10, atol=0)

    soft = double(batch, classes, seed=1).softmax(1)
    expected = reference.affinity(feats, loss.centers, soft, form)
    torch.testing.assert_close(loss(feats, soft), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize('form', FORMS)
def test_center_equals_the_reference(form):
    loss = CenterLoss(3, 6, form=form, loss_weight=0.5).double()
    feats, labels = double(4, 6), torch.tensor([2, 0, 2, 1])
    expected = 0.5 * reference.center(feats, loss.centers, labels, form)
    torch.testing.assert_close(
        loss(feats, labels), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('num_heads', [1, 2, 5])
def test_partition_equals_the_reference(form, num_heads):
    v = double(3, num_heads, 8)
    expected = reference.partition(v, form)
    assert float(PartitionLoss(form)(v)) == pytest.approx(expected, rel=1e-10)


def test_forms_differ_as_the_design_says():
    feats, labels = double(6, 8), torch.arange(6) % 3
    loss, paper = AffinityLoss(3, 8), AffinityLoss(3, 8, form='paper')
    paper.load_state_dict(loss.state_dict())
    assert float(paper(feats.float(), labels)) == pytest.approx(
        6 * float(loss(feats.float(), labels)), rel=1e-5)
    # The logarithm is convex here: Jensen's inequality.
    v = double(4, 3, 8)
    assert PartitionLoss('paper')(v) > PartitionLoss('original')(v)


@pytest.mark.parametrize('form', FORMS)
def test_gradcheck(form):
    feats = double(4, 5).requires_grad_()
    centers = double(3, 5, seed=1).requires_grad_()
    labels = torch.tensor([0, 2, 1, 2])
    soft = double(4, 3, seed=2).softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, c: affinity_loss(x, c, labels, form), (feats, centers))
    assert torch.autograd.gradcheck(
        lambda x, c, p: affinity_loss(x, c, p, form), (feats, centers, soft))
    v = double(3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: partition_loss(v, form), (v, ))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('size', [0., 1., 30., 1e4, 1e8])
def test_coinciding_centres_stay_finite(form, dtype, size):
    loss = AffinityLoss(4, 30, form=form).to(dtype)
    with torch.no_grad():
        loss.centers.fill_(0.3)
    feats = (double(6, 30) * size).to(dtype).requires_grad_()
    for target in (torch.arange(6) % 4, torch.full((6, 4), 0.25, dtype=dtype)):
        value = loss(feats, target)
        value.backward()
        assert value.isfinite()
        assert feats.grad.isfinite().all()
        assert loss.centers.grad.isfinite().all()


@pytest.mark.parametrize('form', FORMS)
def test_features_on_their_centre_stay_finite(form):
    loss = AffinityLoss(2, 8, form=form)
    labels = torch.tensor([0, 1, 1])
    feats = loss.centers.detach()[labels].requires_grad_()
    value = loss(feats, labels)
    value.backward()
    assert 0 < float(value) < 1e-11
    assert feats.grad.isfinite().all()


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_identical_heads_stay_finite(form, dtype):
    for v in (torch.full((3, 4, 6), -1.3), double(3, 1, 6).expand(3, 4, 6)):
        v = v.to(dtype).clone().requires_grad_()
        value = PartitionLoss(form)(v)
        value.backward()
        assert value.isfinite() and value > 30
        assert v.grad.isfinite().all()


def test_soft_targets_agree_on_one_hot_votes():
    labels = torch.tensor([2, 0, 1, 1])
    one_hot = F.one_hot(labels, 3).double()
    feats = double(4, 6)
    for loss in (AffinityLoss(3, 6), CenterLoss(3, 6)):
        loss.double()
        torch.testing.assert_close(
            loss(feats, labels), loss(feats, one_hot), rtol=1e-12, atol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    feats = (double(4, 64) * 50).to(dtype)
    labels = torch.arange(4) % 3
    loss = AffinityLoss(3, 64)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = loss(feats, labels)
        spread = PartitionLoss()(feats.reshape(1, 4, 64))
    assert value.dtype == spread.dtype == torch.float32
    assert torch.equal(value, loss(feats.float(), labels))
    assert torch.equal(spread, PartitionLoss()(feats.float()[None]))


def test_refusals():
    with pytest.raises(ValueError, match='num_classes=1, expected at least 2'):
        AffinityLoss(1, 8)
    for loss in (lambda: AffinityLoss(2, 8, eps=0),
                 lambda: PartitionLoss(eps=-1e-9)):
        with pytest.raises(ValueError, match='expected more than 0'):
            loss()
    for loss in (lambda: AffinityLoss(2, 8, form='papre'),
                 lambda: PartitionLoss(form='papre')):
        with pytest.raises(ValueError, match="form='papre', expected one of"):
            loss()
