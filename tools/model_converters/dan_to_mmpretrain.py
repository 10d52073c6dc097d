# Copyright (c) dan_mm contributors. All rights reserved.
import argparse
import os.path as osp
import re
from typing import Dict, Iterable, Optional, Sequence

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from dan_mm.apis.model_index import find_configs
from dan_mm.checkpoint import check_weights, load_file
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


def dan_key(key: str) -> str:
    """Get the original DAN code's name of one of our weights."""
    for pattern, original in (
        (r'backbone\.conv1\.', 'features.0.'),
        (r'backbone\.bn1\.', 'features.1.'),
        (r'backbone\.layer(\d)\.',
         lambda match: f'features.{int(match[1]) + 3}.'),
        (r'neck\.heads\.(\d+)\.spatial\.conv1x1\.', r'cat_head\1.sa.conv1x1.'),
        (r'neck\.heads\.(\d+)\.spatial\.conv(\dx\d)\.',
         r'cat_head\1.sa.conv_\2.'),
        (r'neck\.heads\.(\d+)\.channel\.', r'cat_head\1.ca.attention.'),
        (r'head\.loss_affinity\.centers', 'centers'),
        (r'head\.', ''),
    ):
        renamed, count = re.subn('^' + pattern, original, key)
        if count:
            return renamed
    return key


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


def rename(source: Dict, weights: Dict, names: Dict, path: str) -> Dict:
    """Give the weights of ``source`` our names.

    Args:
        source (dict): The original weights by their names.
        weights (dict): Our weights by our names, for their shapes.
        names (dict): The original name of each of our weights.
        path (str): The source file for the message.
    """
    # Checkpoints of PyTorch < 0.4.1 do not count batches.
    missing = [
        name for key, name in names.items() if name not in source
        and key != CENTERS and not name.endswith('num_batches_tracked')
    ]
    unexpected = sorted(set(source) - set(names.values()))
    reshaped = [
        f'{name} {tuple(source[name].shape)} instead of '
        f'{tuple(weights[key].shape)}' for key, name in names.items()
        if name in source and source[name].shape != weights[key].shape
    ]
    if missing or unexpected or reshaped:

        def list_some(items: Sequence[str]) -> str:
            rest = f', and {len(items) - 10} more' if items[10:] else ''
            return f'{len(items)} ({", ".join(items[:10])}{rest})'

        raise SystemExit(
            f'{path} is not a checkpoint that can be converted. Missing keys: '
            f'{list_some(missing)}. Unexpected keys: {list_some(unexpected)}. '
            f'Keys of another shape: {list_some(reshaped)}. Expected the '
            'checkpoint of the original DAN with a ResNet-18, or its '
            'ResNet-18 trained on MS-Celeb-1M.')
    return {
        key: source[name].clone()
        for key, name in names.items() if name in source
    }


def convert(checkpoint: Dict, path: str) -> Dict:
    """Convert the weights of a checkpoint."""
    source, dan = None, False
    if isinstance(checkpoint, dict):
        dan = 'model_state_dict' in checkpoint
        source = checkpoint.get('model_state_dict' if dan else 'state_dict')
    if not isinstance(source, dict):
        found = (
            sorted(map(str, checkpoint))
            if isinstance(checkpoint, dict) else type(checkpoint).__name__)
        raise SystemExit(
            f'{path} holds {found}, expected the original DAN\'s '
            "'model_state_dict', or 'state_dict' with the weights of its "
            'ResNet-18 trained on MS-Celeb-1M.')
    check_weights(source, path)
    source = {re.sub(r'^module\.', '', key): source[key] for key in source}

    if not dan:
        weights = expected_weights()
        names = {key: key[len('backbone.'):] for key in weights}
        # The classifier of the celebrities is of no use here.
        backbone = {
            key: value
            for key, value in source.items() if not key.startswith('fc.')
        }
        return rename(backbone, weights, names, path)

    heads = {key.split('.')[0] for key in source if key.startswith('cat_head')}
    num_classes = len(source['fc.weight']) if 'fc.weight' in source else 7
    centers = source.get('centers')
    if centers is not None and len(centers) == num_classes + 1:
        print(f'Drops the last of {len(centers)} class centres: there are '
              f'{num_classes} classes.')
        source['centers'] = centers[:num_classes]
    weights = expected_weights(len(heads) or 4, max(num_classes, 2))
    return rename(source, weights, {key: dan_key(key)
                                    for key in weights}, path)


def describe_dan(dataset: str, state_dict: Dict) -> Dict:
    """Describe DAN and its test pipeline, for inference."""
    cfg = Config.fromfile(osp.join(find_configs(), f'dan_{dataset}.py'))
    cfg.model.neck.num_heads = len(
        {key.split('.')[2]
         for key in state_dict if key.startswith('neck.')})
    description = describe(cfg)
    return dict(model=description.model, test_pipeline=description.pipeline)


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
        state_dict = convert(load_file(args.src), args.src)
    except ValueError as error:
        raise SystemExit(str(error))
    meta = {}
    if args.dataset:
        classes = METAINFO[args.dataset]['classes']
        found = len(state_dict['head.fc.bias']
                    ) if 'head.fc.bias' in state_dict else 'no'
        if found != len(classes):
            raise SystemExit(f'{args.src} has {found} classes, '
                             f'{args.dataset} has {len(classes)}. Use another '
                             '--dataset, or none.')
        meta['dataset_meta'] = METAINFO[args.dataset]
        meta.update(describe_dan(args.dataset, state_dict))

    with refuse_unwritten(args.dst):
        save_checkpoint(dict(meta=meta, state_dict=state_dict), args.dst)
    centers = 'with' if CENTERS in state_dict else 'without'
    print(f'Wrote {len(state_dict)} tensors, {centers} class centres, to '
          f'{args.dst}.')


if __name__ == '__main__':
    main()
