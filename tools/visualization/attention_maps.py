# Copyright (c) dan_mm contributors. All rights reserved.
"""Draw what the heads of DAN look at: images of the test set, a row each,
and the attention map of each head over them."""
import argparse
import os.path as osp
from tempfile import TemporaryDirectory

import matplotlib
import numpy as np
import torch
from matplotlib.backend_bases import FigureCanvasBase
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

import dan_mm
from dan_mm.cli.output import refuse_unwritten
from dan_mm.engine import CheckpointFitHook
from dan_mm.files import atomic_write, check_file, check_folder
from dan_mm.models import MAN

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402 isort: skip


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file; a config is code and is executed')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        default='attention_maps.png',
        help='the image to write (default: %(default)s)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config with key=value pairs')
    return parser.parse_args()


def pick(dataset) -> list:
    """Pick an image of each class."""
    labels = dataset.get_gt_labels()
    found = [
        np.flatnonzero(labels == label)
        for label in range(len(dataset.metainfo['classes']))
    ]
    # Where each person shows each class, in the same order, these are other
    # persons.
    return [
        indices[label % len(indices)] for label, indices in enumerate(found)
        if len(indices)
    ]


def load(args: argparse.Namespace):
    """Build the model with its weights, and the test set."""
    # Whatever the config imports
    dan_mm.register_all_modules(init_default_scope=False)
    cfg = Config.fromfile(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    cfg.update(load_from=args.checkpoint, resume=False)
    with TemporaryDirectory() as work_dir:
        cfg.work_dir = work_dir
        runner = Runner.from_cfg(cfg)
    if not isinstance(runner.model.neck, MAN):
        raise SystemExit(f'{args.config} has the neck '
                         f'{type(runner.model.neck).__name__}, expected MAN, '
                         'which has attention maps. Use a config of DAN.')
    fit = CheckpointFitHook()
    runner.register_hook(fit)
    dataset = runner.build_dataloader(cfg.test_dataloader).dataset
    try:
        runner.load_or_resume()
        fit.compare_classes(dataset)
    except ValueError as error:
        raise SystemExit(str(error))
    return runner.model.eval(), dataset


def main() -> None:
    args = parse_args()
    try:
        check_file(args.out, [args.config, args.checkpoint])
        check_folder(osp.dirname(args.out))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error))
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if osp.splitext(args.out)[1][1:].lower() not in formats:
        raise SystemExit(f'--out got {args.out}, expected an image file: '
                         f'{", ".join(formats)}.')
    model, dataset = load(args)
    images = (
        dataset.get_data_info(i).get('img_path') for i in range(len(dataset)))
    try:
        check_file(args.out, filter(None, images))
    except ValueError as error:
        raise SystemExit(str(error))
    classes = dataset.metainfo['classes']
    indices = pick(dataset)
    heads = model.neck.num_heads
    figure, grid = plt.subplots(
        len(indices),
        heads + 1,
        squeeze=False,
        figsize=(1.6 * (heads + 1), 1.75 * len(indices)),
        layout='constrained')
    for row, index in zip(grid, indices):
        sample = dataset[index]
        # BGR, as the transforms have it
        image = sample['inputs'].permute(1, 2, 0).numpy()[..., ::-1]
        image = np.ascontiguousarray(image)
        data = model.data_preprocessor(pseudo_collate([sample]))
        with torch.no_grad():
            feats = model.extract_feat(data['inputs'], stage='backbone')
            maps = model.neck.attention_maps(feats)[0]
            scores = model(**data, mode='predict')[0]
        truth = classes[int(sample['data_samples'].gt_label)]
        found = classes[int(scores.pred_label)]
        row[0].imshow(image)
        row[0].set_title(
            truth if truth == found else f'{truth}, taken for {found}',
            fontsize=8,
            color='black' if truth == found else 'tab:red')
        size = image.shape[:2]
        for j, (axes, attention) in enumerate(zip(row[1:], maps)):
            overlay = Visualizer.draw_featmap(
                torch.nn.functional.interpolate(
                    attention[None, None], size, mode='bicubic')[0], image)
            axes.imshow(overlay)
            axes.set_title(f'head {j + 1}', fontsize=8)
        for axes in row:
            axes.axis('off')
    with refuse_unwritten(args.out), atomic_write(args.out) as temporary:
        figure.savefig(temporary, dpi=120)
    side = 'x'.join(map(str, maps.shape[1:]))
    print(f'Wrote {len(indices)} images with the {side} maps of {heads} '
          f'heads to {args.out}.')


if __name__ == '__main__':
    main()
