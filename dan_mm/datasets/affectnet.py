# Copyright (c) dan_mm contributors. All rights reserved.
from mmpretrain.registry import DATASETS

from .folder import ClassFolders


@DATASETS.register_module()
class AffectNet(ClassFolders):
    """The manually annotated expressions of `AffectNet
    <http://mohammadmahoor.com/affectnet/>`_, with 8 or 7 classes.

    The folder has a folder for each class, named after the class or its
    official index, in one for each split, ::

        data_root
        ├── train
        │   ├── 0
        │   │   ├── xxx.jpg
        │   │   └── ...
        │   ├── ...
        │   └── 7
        └── val

    which ``tools/dataset_converters/affectnet.py`` makes of all forms that it
    is given out in. The training set has 287,651 images of 8 classes
    (287,568 in the paper of `DAN <https://doi.org/10.3390/biomimetics8020199>`_)
    or 283,901 of 7, the validation set 500 of each. The authors keep the test
    set: results are reported on ``split='val'``.

    Args:
        data_root (str): The folder of the dataset.
        split (str): 'train' or 'val'. Defaults to 'train'.
        num_classes (int): 8, or 7 without contempt, whose images are then
            left out. Defaults to 8.
        **kwargs: See :class:`FERDataset`, also for the errors.
    """  # noqa: E501

    METAINFO = dict(
        classes=('neutral', 'happiness', 'sadness', 'surprise', 'fear',
                 'disgust', 'anger', 'contempt'),
        dataset_name='AffectNet',
        licence='non-commercial research')
    OFFICIAL_COUNTS = dict(train=(287651, 287568), val=4000)
    CLASS_COUNTS = dict(
        train=[(74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750)],
        val=[(500, ) * 8])
    NUMBERED = True

    def __init__(self,
                 data_root: str,
                 split: str = 'train',
                 num_classes: int = 8,
                 **kwargs) -> None:
        if num_classes not in (7, 8):
            raise ValueError(f'AffectNet got num_classes={num_classes}, '
                             'expected 8, or 7 without contempt.')
        if num_classes == 7:
            self.METAINFO = {
                **self.METAINFO, 'classes': self.METAINFO['classes'][:7]
            }
            self.OFFICIAL_COUNTS = {'train': 283901, 'val': 3500}
            self.CLASS_COUNTS = {
                split: [counts[:7] for counts in known]
                for split, known in self.CLASS_COUNTS.items()
            }
        metainfo = {
            'classes': self.METAINFO['classes'],
            **(kwargs.pop('metainfo', None) or {})
        }
        super().__init__(data_root, split, metainfo=metainfo, **kwargs)
