# Copyright (c) dan_mm contributors. All rights reserved.
"""MAN and AFN on every backbone that MMPretrain registers."""
from importlib.util import find_spec

import mmpretrain
import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

MODELS.import_from_location()
REGISTERED = sorted(
    name for name, module in MODELS.module_dict.items()
    if module.__module__.startswith('mmpretrain.models.backbones.'))


def case(channels, side=2, size=64, neck={}, refused=None, **backbone):
    """A small variant of a backbone.

    Args:
        channels (int): The number of channels that it gives.
        side (int): The height and width of its map; 1 if it gives a vector.
        size (int): The height and width of the images.
        neck (dict): What the neck needs besides ``in_channels``.
        refused (tuple): If it can't feed MAN: the error and what it says.
        **backbone: The arguments of the backbone.
    """
    return dict(
        channels=channels,
        side=side,
        size=size,
        neck=neck,
        refused=refused,
        backbone=backbone)


TINY_VIT = dict(
    embed_dims=64, num_layers=2, num_heads=2, feedforward_channels=128)
NO_MASK = (AttributeError, "'NoneType' object has no attribute 'shape'")

BACKBONES = dict(
    AlexNet=case(256, size=95),
    BEiTViT=case(64, 4, arch=TINY_VIT, img_size=64, out_type='featmap'),
    CSPDarkNet=case(1024, depth=53),
    CSPResNeXt=case(2048, depth=50),
    CSPResNet=case(1024, depth=50),
    # It gives the vectors of both of its branches as one output.
    Conformer=case(
        384,
        refused=(ValueError,
                 'got list as the output .*out_type.*can.t feed MAN'),
        arch='tiny'),
    ConvMixer=case(
        64, 9, arch=dict(embed_dims=64, depth=2, patch_size=7, kernel_size=7)),
    ConvNeXt=case(320, arch='atto', gap_before_final_norm=False),
    DaViT=case(
        128,
        arch=dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]),
        window_size=2),
    DeiT3=case(64, 4, arch=TINY_VIT, img_size=64, out_type='featmap'),
    DenseNet=case(
        64, arch=dict(growth_rate=16, depths=[2, 2, 2, 2], init_channels=32)),
    # The class and the distillation token come first.
    DistilledVisionTransformer=case(
        64,
        4,
        neck=dict(num_extra_tokens=2),
        arch=TINY_VIT,
        img_size=64,
        out_type='raw'),
    EdgeNeXt=case(168, arch='xxsmall', gap_before_final_norm=False),
    # Its attention takes maps of 7x7 only.
    EfficientFormer=case(448, 7, size=224, arch='l1', reshape_last_feat=True),
    EfficientNet=case(1280, arch='b0'),
    EfficientNetV2=case(1280, arch='b0'),
    HRNet=case(36, 8, neck=dict(in_index=1), arch='w18'),
    HiViT=case(384, 4, arch='tiny', img_size=64),
    HorNet=case(512, arch='tiny', gap_before_final_norm=False),
    # Its output is that of its linear layer, not a map.
    InceptionV3=case(64, 1, size=75, num_classes=64),
    LeNet5=case(120, 1, size=32),
    LeViT=case(384, size=128, arch='128s', img_size=128),
    MViT=case(768, arch='tiny', img_size=64),
    # It always pools its map.
    MixMIMTransformer=case(
        128,
        1,
        arch=dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]),
        img_size=64,
        window_size=[2, 2, 2, 2]),
    # It gives its tokens as (B, C, L).
    MlpMixer=case(
        512,
        refused=(ValueError,
                 r'shape \(2, 512, 16\).*\(B, L, 512\).*reshape_last_feat'),
        arch='small',
        img_size=64),
    MobileNetV2=case(1280),
    MobileNetV3=case(576, arch='small'),
    MobileOne=case(1024, arch='s0'),
    MobileViT=case(320, arch='xx_small'),
    PCPVT=case(512, arch='small'),
    PoolFormer=case(512, arch='s12'),
    # Images of 224x224 only
    PyramidVig=case(384, 7, size=224, arch='tiny'),
    RIFormer=case(512, arch='s12'),
    RegNet=case(384, arch='regnetx_400mf'),
    RepLKNet=case(
        256,
        arch=dict(
            large_kernel_sizes=[9, 7, 5, 3],
            layers=[1, 1, 1, 1],
            channels=[32, 64, 128, 256],
            small_kernel=3,
            dw_ratio=1)),
    RepMLPNet=case(768, arch='base', img_size=64),
    RepVGG=case(1280, arch='A0'),
    Res2Net=case(512, depth=50, base_channels=16),
    ResNeSt=case(512, depth=50, base_channels=16),
    ResNeXt=case(512, depth=50, base_channels=16),
    ResNet=case(512, depth=18),
    ResNetV1c=case(512, depth=18),
    ResNetV1d=case(512, depth=18),
    ResNet_CIFAR=case(512, 4, size=32, depth=18),
    # It gives the channels of both of its streams.
    RevVisionTransformer=case(
        128, 4, arch=TINY_VIT, img_size=64, out_type='featmap'),
    SEResNeXt=case(512, depth=50, base_channels=16),
    SEResNet=case(512, depth=50, base_channels=16),
    SVT=case(512, arch='small'),
    ShuffleNetV1=case(960),
    ShuffleNetV2=case(1024),
    # The host's own error: they need the mask of SparK's pre-training. ResNet
    # and ConvNeXt take their weights.
    SparseConvNeXt=case(
        320, refused=NO_MASK, arch='atto', gap_before_output=False),
    SparseResNet=case(512, refused=NO_MASK, depth=18),
    SwinTransformer=case(768, arch='tiny', img_size=64, window_size=2),
    SwinTransformerV2=case(768, arch='tiny', img_size=64, window_size=2),
    T2T_ViT=case(384, 4, img_size=64, num_layers=2, out_type='featmap'),
    TIMMBackbone=case(512, model_name='resnet18', features_only=True),
    # It gives its class token only.
    TNT=case(384, 1, arch='small', img_size=64),
    TinyViT=case(320, 7, size=224, arch='5m', gap_before_final_norm=False),
    VAN=case(256, arch='tiny'),
    VGG=case(512, depth=11),
    ViTEVA02=case(
        192,
        4,
        neck=dict(num_extra_tokens=1),
        arch='tiny',
        img_size=64,
        out_type='raw'),
    ViTSAM=case(
        256, 4, arch=dict(TINY_VIT, global_attn_indexes=[1]), img_size=64),
    Vig=case(192, 14, size=224, arch='tiny'),
    VisionTransformer=case(
        64, 4, arch=TINY_VIT, img_size=64, out_type='featmap'),
    XCiT=case(
        64,
        4,
        img_size=64,
        embed_dims=64,
        depth=2,
        num_heads=2,
        out_type='featmap'),
)

if find_spec('timm') is None:
    BACKBONES['TIMMBackbone']['refused'] = (ImportError,
                                            'TIMMBackbone requires timm')


def build(name, setting):
    torch.manual_seed(0)
    channels = setting['channels']
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type=name, **setting['backbone']),
            neck=dict(
                type='MAN',
                in_channels=channels,
                num_heads=2,
                **setting['neck']),
            head=dict(type='AFN', num_classes=7, in_channels=channels)))
    model.init_weights()
    return model


def images_for(name, setting):
    channels = 1 if name == 'LeNet5' else 3
    return torch.rand(2, channels, setting['size'], setting['size'])


@pytest.mark.parametrize('name', REGISTERED)
def test_feeds_the_heads_or_is_refused(name):
    assert name in BACKBONES, (
        f'MMPretrain registers the backbone {name}, which is not tested with '
        'MAN: add it to the table.')
    setting = BACKBONES[name]
    data_samples = [DataSample().set_gt_label(label) for label in (0, 6)]
    if setting['refused']:
        error, message = setting['refused']
        with pytest.raises(error, match=message):
            model = build(name, setting)
            model.loss(images_for(name, setting), data_samples)
        return

    model = build(name, setting).train()
    images = images_for(name, setting)
    losses = model.loss(images, data_samples)
    assert set(losses) == {'loss_cls', 'loss_affinity', 'loss_partition'}
    for key, value in losses.items():
        assert value.isfinite(), key
    sum(losses.values()).backward()
    for part in (model.neck, model.head):
        for key, parameter in part.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            # BatchNorm takes away what biases before it add.
            assert parameter.ndim == 1 or parameter.grad.any(), key
    grads = [parameter.grad for parameter in model.backbone.parameters()]
    assert any(grad is not None and grad.any() for grad in grads)

    model.eval()
    with torch.no_grad():
        x, _ = model.extract_feat(images)
        predictions = model.predict(images)
    assert x.shape == (2, setting['channels'], *[setting['side']] * 2)
    for prediction in predictions:
        assert prediction.pred_score.shape == (7, )
        assert prediction.pred_score.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.skipif(
    mmpretrain.__version__ != '1.3.6',
    reason='the table is that of MMPretrain 1.3.6')
def test_the_table_has_no_other_names():
    assert sorted(BACKBONES) == REGISTERED


@pytest.mark.parametrize('name, extra', [('VisionTransformer', 1),
                                         ('DistilledVisionTransformer', 2)])
def test_tokens_are_read_as_the_map_of_the_backbone(name, extra):
    setting = case(64, neck=dict(num_extra_tokens=extra), arch=TINY_VIT)
    model = build(name, setting).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        model.backbone.out_type = 'featmap'
        expected, _ = model.extract_feat(images)
        model.backbone.out_type = 'raw'
        x, _ = model.extract_feat(images)
        assert torch.equal(x, expected)
        model.neck.num_extra_tokens = 0
        with pytest.raises(ValueError, match='Set `neck.num_extra_tokens`'):
            model.extract_feat(images)
