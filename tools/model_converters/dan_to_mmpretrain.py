# Copyright (c) dan_mm contributors. All rights reserved.
import argparse
import os.path as osp
import re
from typing import Dict, Iterable, Optional

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from dan_mm.apis.model_index import find_configs
from dan_mm.checkpoint import check_weights, load_file, rename_weights
from dan_mm.cli.output import refuse_unwritten
from dan_mm.datasets import RAFDB, SFEW, AffectNet, FERPlus
from dan_mm.description import describe
from dan_mm.files import check_file, save_checkpoint

METAINFO = dict(
    affectnet7={
        **AffectNet.METAINFO, 'classes': AffectNet.METAINFO['classes'][:7]
    },
    affectnet8=AffectNet.METAINFO,
    ferplus=FERPlus.METAINFO,
    rafdb=RAFDB.METAINFO,
    sfew=SFEW.METAINFO)

CENTERS = 'head.loss_affinity.centers'
# From our names of weights to those of the original code
NAMES = (
    (r'^backbone\.conv1\.', 'features.0.'),
    (r'^backbone\.bn1\.', 'features.1.'),
    (r'^backbone\.layer(\d)\.',
     lambda match: f'features.{int(match[1]) + 3}.'),
    (r'^neck\.heads\.(\d+)\.spatial\.conv1x1\.', r'cat_head\1.sa.conv1x1.'),
    (r'^neck\.heads\.(\d+)\.spatial\.conv(\dx\d)\.',
     r'cat_head\1.sa.conv_\2.'),
    (r'^neck\.heads\.(\d+)\.channel\.', r'cat_head\1.ca.attention.'),
    (r'^head\.loss_affinity\.centers', 'centers'),
    (r'^head\.', ''),
)


def expected_weights(num_heads: int = 0, num_classes: int = 0) -> Dict:
    """Get the names and shapes of our weights: of DAN, or, with no heads, of
    its backbone."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        parts = dict(backbone=MODELS.build(dict(type='ResNet', depth=18)))
        if num_heads:
            parts['neck'] = MODELS.build(
                dict(type='MAN', in_channels=512, num_heads=num_heads))
            parts['head'] = MODELS.build(
                dict(type='AFN', in_channels=512, num_classes=num_classes))
        return torch.nn.ModuleDict(parts).state_dict()


def convert(checkpoint: Dict) -> Dict:
    """Convert the weights of a checkpoint."""
    source, dan = None, False
    if isinstance(checkpoint, dict):
        dan = 'model_state_dict' in checkpoint
        source = checkpoint.get('model_state_dict' if dan else 'state_dict')
    if not isinstance(source, dict):
        found = (
            sorted(map(str, checkpoint))
            if isinstance(checkpoint, dict) else type(checkpoint).__name__)
        raise ValueError(
            f"It holds {found}, expected 'model_state_dict' or 'state_dict'.")
    check_weights(source, 'It')
    source = {re.sub(r'^module\.', '', key): source[key] for key in source}

    if not dan:
        # The classifier of the celebrities is of no use here.
        backbone = {
            key: value
            for key, value in source.items() if not key.startswith('fc.')
        }
        return rename_weights(backbone, expected_weights(),
                              [(r'^backbone\.', '')])

    heads = {key.split('.')[0] for key in source if key.startswith('cat_head')}
    num_classes = len(source['fc.weight']) if 'fc.weight' in source else 7
    centers = source.get('centers')
    if centers is not None and len(centers) == num_classes + 1:
        print(f'Drops the last of {len(centers)} class centres: there are '
              f'{num_classes} classes.')
        source['centers'] = centers[:num_classes]
    weights = expected_weights(len(heads) or 4, max(num_classes, 2))
    return rename_weights(source, weights, NAMES, 'centers')


def main(argv: Optional[Iterable[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description='Convert a checkpoint of the original DAN, or the '
        'ResNet-18 trained on MS-Celeb-1M that it starts from, to MMPretrain.')
    parser.add_argument('src', help='the original checkpoint')
    parser.add_argument('dst', help='the file to write')
    parser.add_argument(
        '--dataset',
        choices=sorted(METAINFO),
        help='what the checkpoint was trained on: puts the names of the '
        'classes into the new checkpoint')
    args = parser.parse_args(argv)

    try:
        check_file(args.dst, [args.src])
        checkpoint = load_file(args.src)
    except ValueError as error:
        raise SystemExit(str(error))
    try:
        state_dict = convert(checkpoint)
    except ValueError as error:
        raise SystemExit(
            f'{args.src} cannot be converted. {error} Expected a checkpoint '
            'of the original DAN with a ResNet-18, or its ResNet-18 trained '
            'on MS-Celeb-1M.')
    meta = {}
    if args.dataset:
        classes = METAINFO[args.dataset]['classes']
        found = len(state_dict['head.fc.bias']
                    ) if 'head.fc.bias' in state_dict else 'no'
        if found != len(classes):
            raise SystemExit(f'{args.src} has {found} classes, '
                             f'{args.dataset} has {len(classes)}. Use another '
                             '--dataset, or none.')
        cfg = Config.fromfile(
            osp.join(find_configs(), f'dan_{args.dataset}.py'))
        cfg.model.neck.num_heads = len({
            key.split('.')[2]
            for key in state_dict if key.startswith('neck.')
        })
        model, pipeline = describe(cfg)
        meta = dict(
            dataset_meta=METAINFO[args.dataset],
            model=model,
            test_pipeline=pipeline)

    with refuse_unwritten(args.dst):
        save_checkpoint(dict(meta=meta, state_dict=state_dict), args.dst)
    centers = 'with' if CENTERS in state_dict else 'without'
    print(f'Wrote {len(state_dict)} tensors, {centers} class centres, to '
          f'{args.dst}.')


if __name__ == '__main__':
    main()
