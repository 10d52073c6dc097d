# Copyright (c) dan_mm contributors. All rights reserved.
__version__ = '0.1.0'
# The first version that fits, and the first that does not any more.
PYTHON = ('3.10', '3.13')
# Module, distribution to install, and the same. The modules' own versions
# count: the maintained forks and the upstream packages have the same modules.
VERSIONS = (
    ('torch', 'torch', '2.6.0', '2.13.0'),
    ('mmengine', 'onedl-mmengine', '0.10.0', '1.0.0'),
    ('mmcv', 'onedl-mmcv', '2.0.0', '2.4.0'),
    ('mmpretrain', 'onedl-mmpretrain', '1.2.0', '2.0.0'),
)
# For dan_mm.detection alone
MMDET = ('mmdet', 'onedl-mmdetection', '3.0.0', '4.0.0')
