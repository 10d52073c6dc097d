# Copyright (c) dan_mm contributors. All rights reserved.
"""MAN and AFN, alone and in MMPretrain's classifier."""
import numpy as np
import pytest
import reference
import torch
import torch.nn as nn
import torch.nn.functional as F
from mmengine.analysis import get_model_complexity_info
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from reference import ReferenceDAN
from torch._subclasses import FakeTensorMode

from dan_mm.models import AFN, MAN


def samples(labels, num_classes=None):
    """Data samples with hard targets, or with one-hot soft ones."""
    result = [DataSample().set_gt_label(int(label)) for label in labels]
    if num_classes:
        for sample, label in zip(result, labels):
            sample.set_gt_score(
                F.one_hot(torch.tensor(label), num_classes).double())
    return result


def rename(state_dict):
    """Give the reference's weights our names: neck and head."""
    neck, head = {}, {}
    for key, value in state_dict.items():
        if key.startswith('cat_head'):
            key = key.replace('cat_head', 'heads.', 1)
            key = key.replace('.sa.', '.spatial.').replace('conv_', 'conv')
            neck[key.replace('.ca.attention.', '.channel.')] = value
        else:
            head[key.replace('centers', 'loss_affinity.centers')] = value
    return neck, head


def build(num_heads, channels=32, num_classes=5, **kwargs):
    torch.manual_seed(0)
    plain = ReferenceDAN(channels, num_heads, num_classes).double()
    for name, buffer in plain.named_buffers():
        if name.endswith('running_mean'):
            buffer.normal_()
        elif name.endswith('running_var'):
            buffer.uniform_(0.5, 1.5)
    neck = MAN(channels, num_heads).double()
    head = AFN(num_classes, channels, **kwargs).double()
    neck_weights, head_weights = rename(plain.state_dict())
    neck.load_state_dict(neck_weights)
    head.load_state_dict(head_weights)
    return neck, head, plain


@pytest.mark.parametrize('training', [False, True])
def test_scaled_maps(training):
    """A factor on the maps is one on the weights that their maps are sums of:
    the last BatchNorm layers are homogeneous."""
    neck, _, _ = build(2)
    scaled = MAN(32, 2, map_scale=0.2).double()
    scaled.load_state_dict(neck.state_dict())
    for head in neck.heads:
        for name in 'conv3x3', 'conv1x3', 'conv3x1':
            norm = getattr(head.spatial, name)[1]
            norm.weight.data *= 0.2
            norm.bias.data *= 0.2
    x = torch.rand(4, 32, 3, 3, dtype=torch.float64)
    neck.train(training), scaled.train(training)
    torch.testing.assert_close(scaled(x)[1], neck(x)[1])
    # The maps to look at are those of the paper.
    torch.testing.assert_close(scaled.eval().attention_maps(x),
                               neck.eval().attention_maps(x) / 0.2)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('num_heads', [1, 2, 4])
def test_equals_the_reference(num_heads, training):
    neck, head, plain = build(num_heads)
    for module in (neck, head, plain):
        module.train(training)
    x = torch.randn(3, 32, 5, 6, dtype=torch.float64)
    close = dict(rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(neck.attention_maps(x), plain.maps(x), **close)
    out, heads = neck(x)
    v, logits = plain(x)
    assert out is x
    torch.testing.assert_close(head.scale(heads), v, **close)
    torch.testing.assert_close(head.pre_logits((x, heads)), v.sum(1), **close)
    torch.testing.assert_close(head((x, heads)), logits, **close)


@pytest.mark.parametrize('form', ['original', 'paper'])
def test_losses_are_those_of_the_equations(form):
    neck, head, plain = build(num_heads=3, form=form)
    x = torch.randn(4, 32, 5, 5, dtype=torch.float64)
    labels = [4, 0, 1, 0]
    losses = head.loss(neck(x), samples(labels))
    assert set(losses) == {'loss_cls', 'loss_affinity', 'loss_partition'}
    v, logits = plain(x)
    target = torch.tensor(labels)
    for name, expected in dict(
            loss_cls=F.cross_entropy(logits, target),
            loss_affinity=reference.affinity(
                x.mean((2, 3)), plain.centers, target, form),
            loss_partition=reference.partition(v, form)).items():
        assert losses[name].item() == pytest.approx(
            torch.as_tensor(expected, dtype=torch.float64).item(), rel=1e-10)


@pytest.mark.parametrize('disabled', ['loss_affinity', 'loss_partition'])
def test_a_loss_can_be_none(disabled):
    neck, head, _ = build(num_heads=2)
    head = AFN(5, 32, **{disabled: None}).double()
    losses = head.loss(
        neck(torch.randn(2, 32, 3, 3, dtype=torch.float64)), samples([0, 1]))
    assert disabled not in losses and len(losses) == 2
    assert not any('centers' in name for name, _ in head.named_parameters()
                   if disabled == 'loss_affinity')


def test_soft_and_hard_targets_agree_on_one_hot_votes():
    neck, head, _ = build(num_heads=4, cal_acc=True)
    feats = neck(torch.randn(4, 32, 4, 4, dtype=torch.float64))
    head.bn.momentum = 0
    hard = head.loss(feats, samples([1, 4, 0, 1]))
    soft = head.loss(feats, samples([1, 4, 0, 1], num_classes=5))
    assert 'accuracy_top-1' in hard and 'accuracy_top-1' not in soft
    for name, value in soft.items():
        assert value.item() == pytest.approx(hard[name].item(), rel=1e-12)


def test_mixup_reaches_the_losses():
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18),
            neck=dict(type='MAN', in_channels=512, num_heads=2),
            head=dict(
                type='AFN', num_classes=5, in_channels=512, cal_acc=True),
            data_preprocessor=dict(num_classes=5),
            train_cfg=dict(augments=dict(type='Mixup', alpha=1.))))
    torch.manual_seed(0)
    np.random.seed(0)
    data = model.data_preprocessor(
        dict(inputs=torch.rand(4, 3, 32, 32), data_samples=samples(range(4))),
        training=True)
    shares = torch.stack([item.gt_score for item in data['data_samples']])
    assert ((shares > 0).sum(1) == 2).any()
    losses = model(**data, mode='loss')
    feats = model.backbone(data['inputs'])[-1].mean((2, 3))
    centers = model.head.loss_affinity.centers
    expected = reference.affinity(feats, centers, shares, 'original')
    torch.testing.assert_close(losses['loss_affinity'], expected)


def test_initialisation_is_that_of_the_original_code():
    torch.manual_seed(0)
    neck = MAN(256, num_heads=4)
    neck.init_weights()
    for name, module in neck.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_out = module.out_channels * module.weight[0, 0].numel()
            assert module.bias.eq(0).all()
            assert module.weight.std().item() == pytest.approx(
                (2 / fan_out)**0.5, rel=0.05), name
        elif isinstance(module, torch.nn.Linear):
            assert module.bias.eq(0).all()
            assert module.weight.std().item() == pytest.approx(1e-3, rel=0.05)


def test_parameters_and_multiply_adds_are_those_of_the_paper():
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18),
            neck=dict(type='MAN', in_channels=512, num_heads=4),
            head=dict(type='AFN', num_classes=7, in_channels=512))).eval()
    parameters = sum(value.numel() for name, value in model.named_parameters()
                     if 'centers' not in name)
    assert round(parameters / 1e6, 2) == 19.72
    info = get_model_complexity_info(
        model, (3, 224, 224), show_table=False, show_arch=False)
    assert round(info['flops'] / 1e9, 2) == 2.23


def test_every_parameter_gets_a_gradient():
    neck, head, _ = build(num_heads=2)
    losses = head.loss(
        neck(torch.randn(4, 32, 5, 5, dtype=torch.float64)),
        samples([0, 1, 2, 3]))
    sum(losses.values()).backward()
    for name, parameter in [
            *neck.named_parameters(), *head.named_parameters()
    ]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('case', ['any', 'one class', 'identical images'])
@pytest.mark.parametrize('num_heads', [1, 4])
@pytest.mark.parametrize('form', ['original', 'paper'])
def test_autocast_stays_finite(dtype, case, num_heads, form):
    torch.manual_seed(0)
    neck, head = MAN(64, num_heads), AFN(5, 64, form=form)
    neck.init_weights()
    x = torch.randn(4, 64, 7, 7).relu() * 3
    labels = [0, 1, 2, 3] if case == 'any' else [2, 2, 2, 2]
    if case == 'identical images':
        x = x[:1].expand(4, -1, -1, -1).clone()
    x.requires_grad_()
    with torch.autocast('cpu', dtype=dtype):
        feats = neck(x)
        losses = head.loss(feats, samples(labels))
        scores = head(feats)
    assert feats[1].dtype == scores.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert x.grad.isfinite().all()
    for name, parameter in neck.named_parameters():
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_half_precision_keeps_the_spread_of_the_heads():
    torch.manual_seed(0)
    neck = MAN(512)
    neck.init_weights()
    x = torch.randn(4, 512, 7, 7).relu()
    exact = neck(x)[1]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = neck(x)[1]
    assert 50 < exact.mean() < 100
    # bfloat16 vectors would be off by 7 % of the spread.
    assert (half - exact).abs().mean() < 0.02 * exact.std(1).mean()


@pytest.mark.parametrize('feats, kwargs, size', [
    (torch.rand(2, 32, 4, 5), {}, (4, 5)),
    ([torch.rand(2, 16, 8, 8),
      torch.rand(2, 32, 4, 4)], {}, (4, 4)),
    ((torch.rand(2, 32, 8, 8), torch.rand(2, 64, 4, 4)), dict(in_index=0),
     (8, 8)),
    (torch.rand(2, 9, 32), {}, (3, 3)),
    (torch.rand(2, 11, 32), dict(num_extra_tokens=2), (3, 3)),
    (torch.rand(2, 13, 32), dict(num_extra_tokens=1, feat_size=(3, 4)),
     (3, 4)),
    (torch.rand(2, 32), {}, (1, 1)),
])
def test_what_backbones_give(feats, kwargs, size):
    neck = MAN(32, num_heads=3, **kwargs)
    x, heads = neck(feats)
    assert x.shape == (2, 32, *size)
    assert heads.shape == (2, 3, 32)
    assert neck.attention_maps(feats).shape == (2, 3, *size)


def test_tokens_keep_their_place():
    tokens = torch.arange(2 * 7 * 16).reshape(2, 7, 16).float()
    x, _ = MAN(16, num_extra_tokens=1, feat_size=(2, 3))(tokens)
    assert torch.equal(x[1, :, 1, 2], tokens[1, 6])
    assert torch.equal(x[0, :, 0, 1], tokens[0, 2])


@pytest.mark.parametrize('feats, message', [
    (torch.rand(2, 64, 4, 4), r'in_channels=32, expected \(B, 32, H, W\)'),
    (torch.rand(2, 4, 4, 32), r'Set `neck.in_channels`'),
    (torch.rand(2, 10, 32), 'expected a square number of patch tokens. Set '
     '`neck.num_extra_tokens`'),
    ((), 'got 0 outputs'),
    (dict(x=torch.rand(2, 32)), 'got dict as the output'),
    ([[torch.rand(2, 32)]], 'got list as the output'),
    (torch.rand(1, 32, 4, 4), 'a training batch of 1 image.*drop_last'),
])
def test_what_the_neck_refuses(feats, message):
    with pytest.raises(ValueError, match=message):
        MAN(32)(feats)


def test_what_the_head_refuses():
    head = AFN(5, 32)
    feats = torch.rand(3, 32, 4, 4), torch.rand(3, 2, 32)
    for wrong in ((torch.rand(3, 32), ), (feats[0], torch.rand(3, 2, 16))):
        with pytest.raises(ValueError, match="Use `neck=dict.type='MAN'"):
            head(wrong)
    with pytest.raises(ValueError, match=r'labels \[0, 5\].*from 0 to 4'):
        head.loss(feats, samples([0, 5, 0]))
    with pytest.raises(ValueError, match=r'labels \[-1, 0\]'):
        head.loss(feats, samples([0, -1, 0]))
    with pytest.raises(ValueError, match='soft targets of 7 classes'):
        head.loss(feats, samples([0, 1, 0], num_classes=7))
    with pytest.raises(ValueError, match='training batch of 1'):
        head.loss([feat[:1] for feat in feats], samples([0]))
    with pytest.raises(ValueError, match='num_classes=1, expected at least 2'):
        AFN(1, 32, loss_affinity=None)
    with pytest.raises(ValueError, match='in_channels=8, expected at least'):
        MAN(8)
    with pytest.raises(ValueError, match='num_heads=0'):
        MAN(32, num_heads=0)


def test_a_batch_of_one_is_fine_in_eval():
    neck, head = MAN(32).eval(), AFN(5, 32).eval()
    prediction, = head.predict(neck(torch.rand(1, 32, 4, 4)))
    assert prediction.pred_score.shape == (5, )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_models_of_half_precision(dtype):
    neck, head, _ = build(4)
    feats = torch.rand(3, 32, 4, 4)
    expected = head.float().eval()(neck.float().eval()(feats))
    scores = head.to(dtype)(neck.to(dtype)(feats.to(dtype)))
    assert scores.dtype == dtype
    # Chosen between float16 and bfloat16: 8 bits, and BatchNorm behind them
    torch.testing.assert_close(scores.float(), expected, rtol=0, atol=0.1)


def test_exports_with_a_dynamic_batch():
    neck, head, _ = build(4)
    model = nn.Sequential(neck, head).float().eval()
    batch = torch.export.Dim('batch', min=1, max=64)
    program = torch.export.export(
        model, (torch.rand(2, 32, 4, 4), ), dynamic_shapes=({
            0: batch
        }, ))
    for size in (1, 5):
        feats = torch.rand(size, 32, 4, 4)
        torch.testing.assert_close(program.module()(feats), model(feats))


def test_losses_do_not_wait_for_the_gpu():
    """A fake tensor raises where its values are looked at."""
    with FakeTensorMode(), torch.device('cuda'):
        neck, head = MAN(32), AFN(5, 32)
        targets = samples([0, 1, 2])
        for sample in targets:
            sample.gt_label = torch.zeros(1, dtype=torch.long)
        losses = head.loss(neck(torch.rand(3, 32, 4, 4)), targets)
    assert set(losses) == {'loss_cls', 'loss_affinity', 'loss_partition'}
    assert all(loss.device.type == 'cuda' for loss in losses.values())
