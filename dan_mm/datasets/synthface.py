# Copyright (c) dan_mm contributors. All rights reserved.
"""Synthetic faces: a dataset of expressions that needs no download."""
import json
import os
import os.path as osp
import shutil
import tempfile
import time
from functools import partial
from typing import List, Sequence

import cv2
import mmengine.dist as dist
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.utils import track_progress_rich
from mmpretrain.registry import DATASETS, TRANSFORMS

from .base import FERDataset
from .synthface_drawing import PARTS, PROTOTYPES, draw_face

PREFIX = '.drawing-'  # of folders that are not complete


def _draw_person(identity: int, folder: str, seed: int,
                 size: int) -> List[dict]:
    """Write the images of a person, one of each expression."""
    cv2.setNumThreads(0)
    data_list = []
    for label, expression in enumerate(PROTOTYPES):
        face = draw_face(expression, identity, seed=seed, size=size)
        name = f'{identity:07d}_{expression}'
        bits = np.packbits(face['parts'], axis=0, bitorder='little')[0]
        for end, img in ('', face['img']), ('_parts', bits):
            path = osp.join(folder, f'{name}{end}.png')
            if not cv2.imwrite(path, img):
                raise OSError(
                    f'Cannot write {path}. Make room on the disk, or set '
                    '`data_root` to a folder that can be written to.')
        data_list.append(
            dict(
                img_path=f'{name}.png',
                parts_path=f'{name}_parts.png',
                gt_label=label,
                identity=identity,
                landmarks=face['landmarks'].round(2).tolist(),
                action_units={
                    unit: round(float(value), 3)
                    for unit, value in face['action_units'].items()
                }))
    return data_list


@DATASETS.register_module()
class SynthFace(FERDataset):
    """Synthetic faces with the seven basic expressions and contempt.

    The faces are drawn from prototypes of action units (the Facial Action
    Coding System: happiness is AU6+12, surprise 1+2+5+26) with random
    intensities. Identity, skin, hair, glasses, beard, light, pose, occlusion
    and noise vary; a person has one image of each expression, and no person
    is in two splits.

    They are drawn at the first use, the same ones for the same
    arguments, and kept in a folder of ``data_root``. Each entry of
    the dataset has ``identity``, ``action_units``, ``landmarks`` and
    ``parts_path``, an image whose bits 0 to 3 are the masks of brows, eyes,
    nose and mouth: see :func:`draw_face` and :class:`CoverParts`.

    Args:
        data_root (str): The folder to keep the images in. Defaults to
            'data/synthface'.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        num_identities (int): The number of persons. There are 8 times as many
            images. Defaults to 600.
        size (int): Height and width of the images in pixels. Defaults to
            112.
        seed (int): The seed of all that is random. Defaults to 0.
        **kwargs: See :class:`FERDataset`, also for the errors.
    """

    METAINFO = dict(
        classes=tuple(PROTOTYPES),
        dataset_name='synthface, synthetic faces',
        licence='none needed')
    OFFICIAL_COUNTS = dict(train=None, val=None, test=None)
    # Other images for the same arguments need another number.
    VERSION = 1

    def __init__(self,
                 data_root: str = 'data/synthface',
                 split: str = 'train',
                 num_identities: int = 600,
                 size: int = 112,
                 seed: int = 0,
                 **kwargs) -> None:
        if not 1 <= num_identities <= 10**6:
            raise ValueError(f'SynthFace got num_identities={num_identities}, '
                             'expected 1 to 1,000,000.')
        if kwargs.get('val_split'):
            raise ValueError(
                f'SynthFace got val_split={kwargs["val_split"]}, expected '
                'none: it would split the images of a person. Use '
                "split='val', which has other persons.")
        self.num_identities = num_identities
        self.size = size
        self.seed = seed
        super().__init__(data_root, split, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Draw the images that are not there yet, and list them."""
        os.makedirs(self.data_root, exist_ok=True)
        return super().load_data_list()

    def load_split(self, split: str) -> List[dict]:
        """Draw a split unless it exists."""
        folder = osp.join(self.data_root,
                          f'v{self.VERSION}-{self.size}px-seed{self.seed}',
                          f'{split}-{self.num_identities}')
        # One process of each machine draws, the others wait.
        if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not osp.isdir(folder):
            self._draw(split, folder)
        dist.barrier()
        path = osp.join(folder, 'annotations.json')
        try:
            with open(path) as file:
                data_list = json.load(file)
            files = set(os.listdir(folder))
            missing = [
                info[key] for info in data_list
                for key in ('img_path', 'parts_path') if info[key] not in files
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            missing = [f'{path} ({error})']
        if missing:
            raise ValueError(
                f'SynthFace misses {len(missing)} files in {folder}, the '
                f'first is {missing[0]}, expected all that it wrote there. '
                'Remove that folder, to draw it again.')
        for info in data_list:
            for key in 'img_path', 'parts_path':
                info[key] = osp.join(folder, info[key])
        return data_list

    def _draw(self, split: str, folder: str) -> None:
        first = list(self.OFFICIAL_COUNTS).index(split) * 10**6
        os.makedirs(osp.dirname(folder), exist_ok=True)
        # What a killed process left, a day ago or earlier.
        for entry in os.scandir(osp.dirname(folder)):
            if entry.name.startswith(PREFIX) and (entry.stat().st_mtime
                                                  < time.time() - 86400):
                shutil.rmtree(entry.path, ignore_errors=True)
        # Atomic write: temporary folder, then rename
        temporary = tempfile.mkdtemp(prefix=PREFIX, dir=osp.dirname(folder))
        try:
            persons = track_progress_rich(
                partial(
                    _draw_person,
                    folder=temporary,
                    seed=self.seed,
                    size=self.size),
                range(first, first + self.num_identities),
                nproc=os.cpu_count() or 1,
                chunksize=4,
                description=f'Drawing synthface, {split}')
            with open(osp.join(temporary, 'annotations.json'), 'w') as file:
                json.dump([info for person in persons for info in person],
                          file)
            os.chmod(temporary, 0o755)  # `mkdtemp` makes private ones
            os.rename(temporary, folder)
        except OSError:
            if not osp.isdir(folder):  # another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@TRANSFORMS.register_module()
class CoverParts(BaseTransform):
    """Cover parts of the faces of :class:`SynthFace`, to see what a model
    looks at: they get the mean colour of the image.

    **Required Keys:**

    - img
    - parts_path

    **Modified Keys:**

    - img

    Args:
        parts (Sequence[str]): Some of 'brows', 'eyes', 'nose' and 'mouth'.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        unknown = sorted(set(parts) - set(PARTS))
        if unknown or isinstance(parts, str):
            raise ValueError(f'CoverParts got parts={parts!r}, expected a '
                             f'list of some of {PARTS}.')
        self.parts = tuple(parts)

    def transform(self, results: dict) -> dict:
        """Cover the parts in ``results['img']``.

        Raises:
            ValueError: If the masks are not there, or of another size.
        """
        bits = cv2.imread(results.get('parts_path', ''), cv2.IMREAD_UNCHANGED)
        img = results['img']
        if bits is None or bits.shape != img.shape[:2]:
            found = 'none' if bits is None else f'masks of shape {bits.shape}'
            raise ValueError(
                f'CoverParts found {found} for an image of shape '
                f'{img.shape[:2]}, expected the masks of SynthFace, of the '
                'same size. Put it right after the image is loaded.')
        covered = np.bitwise_and(
            bits, sum(1 << PARTS.index(part) for part in self.parts)) > 0
        img = img.copy()
        img[covered] = img.mean(axis=(0, 1)).astype(img.dtype)
        results['img'] = img
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(parts={self.parts})'
