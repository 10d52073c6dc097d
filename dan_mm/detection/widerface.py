# Copyright (c) dan_mm contributors. All rights reserved.
import math
import os.path as osp
import re
from typing import List

from mmdet.datasets import BaseDetDataset
from mmdet.registry import DATASETS
from mmengine.fileio import exists, list_from_file


@DATASETS.register_module()
class WiderFaceLandmarks(BaseDetDataset):
    """`WIDER FACE <http://shuoyang1213.me/WIDERFACE/>`_ with the five
    landmarks that the authors of `RetinaFace
    <https://github.com/deepinsight/insightface/tree/master/detection/retinaface>`_
    added.

    The annotations are one file. It names an image, then has a line for each
    of its faces, in one of two formats:

    - RetinaFace's ``label.txt``: ``# path``, then left, top, width and height,
      5 times x, y and a flag, and the blur.
    - libfacedetection's ``labelv2.txt``: ``# path width height``, then left,
      top, right and bottom, and 5 times x, y and a flag.

    The numbers after the box may be missing. A landmark whose x and y are -1
    is unknown. Boxes without an area are left out. The arguments are those of
    :class:`mmdet.datasets.BaseDetDataset`; ``filter_cfg`` may have
    ``filter_empty_gt``, which leaves out images without a face.

    Each face has ``bbox``, ``bbox_label``, ``ignore_flag`` and ``keypoints``,
    15 numbers of which every third is 1 where the landmark is known.
    """

    METAINFO = dict(
        classes=('face', ),
        palette=[(0, 255, 0)],
        landmarks=('left eye', 'right eye', 'nose tip',
                   'left corner of the mouth', 'right corner of the mouth'))

    def load_data_list(self) -> List[dict]:
        """Load the annotations. FileNotFoundError is raised if there are none,
        ValueError if they are in none of the formats."""
        if not exists(self.ann_file, backend_args=self.backend_args):
            raise FileNotFoundError(
                f'Found no {self.ann_file}, expected RetinaFace\'s label.txt '
                'or libfacedetection\'s labelv2.txt. Check `data_root` and '
                '`ann_file`.')
        data_list: List[dict] = []
        try:
            lines = list_from_file(
                self.ann_file, backend_args=self.backend_args)
        except UnicodeDecodeError as error:
            raise ValueError(
                f'{self.ann_file} is not text in UTF-8 ({error}), expected '
                'RetinaFace\'s label.txt or libfacedetection\'s labelv2.txt. '
                'Download it again.') from None
        for number, line in enumerate(lines, 1):
            line = line.strip()
            try:
                if line.startswith('#'):
                    data_list.append(
                        self._parse_header(line[1:].strip(), len(data_list)))
                elif line:
                    image = data_list[-1]
                    values = [float(value) for value in line.split()]
                    face = self._parse_face(values, 'width' in image)
                    left, top, right, bottom = face['bbox']
                    if left < right and top < bottom:
                        image['instances'].append(face)
            except (IndexError, ValueError):
                raise ValueError(
                    f'{self.ann_file}, line {number}: found {line!r:.200}, '
                    'expected `# path` or `# path width height`, a path in '
                    'the folder of images, and below it faces of 4, 5, 19 or '
                    '20 numbers. Download it again.') from None
        return data_list

    def _parse_header(self, header: str, img_id: int) -> dict:
        match = re.fullmatch(r'(.+?)(?: (\d+) (\d+))?', header)
        if match is None:
            raise ValueError
        path, width, height = match.groups()
        if osp.isabs(path) or '..' in path.split('/') or '\0' in path:
            raise ValueError
        image = dict(
            img_id=img_id,
            img_path=osp.join(self.data_prefix.get('img', ''), path),
            instances=[])
        if width:
            image.update(width=int(width), height=int(height))
        return image

    def _parse_face(self, values: List[float], corners: bool) -> dict:
        if len(values) not in (4, 5, 19,
                               20) or not all(map(math.isfinite, values)):
            raise ValueError
        left, top, right, bottom = values[:4]
        if not corners:
            right, bottom = left + right, top + bottom
        keypoints = []
        for start in range(4, 19, 3):
            x, y = values[start:start + 2] if len(values) > 5 else (-1, -1)
            keypoints += [x, y, float((x, y) != (-1, -1))]
        return dict(
            bbox=[left, top, right, bottom],
            bbox_label=0,
            # Five numbers are a box and whether to ignore it.
            ignore_flag=int(len(values) == 5 and values[4] == 1),
            keypoints=keypoints)

    def filter_data(self) -> List[dict]:
        """Leave out images without faces if ``filter_cfg`` asks for it."""
        if self.test_mode or not (self.filter_cfg
                                  or {}).get('filter_empty_gt'):
            return self.data_list
        return [image for image in self.data_list if image['instances']]
