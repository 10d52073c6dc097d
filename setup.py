# Copyright (c) dan_mm contributors. All rights reserved.
import os
import re
import shutil
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

with open('dan_mm/version.py') as file:
    version = re.search(r"__version__ = '(.+)'", file.read())[1]
with open('README.md', encoding='utf-8') as file:
    readme = file.read()


class BuildWithConfigs(build_py):
    """Put the configs where MMPretrain has its own, for wheels."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = os.path.join(self.build_lib, 'dan_mm', '.mim', 'configs')
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(
                'configs',
                target,
                ignore=shutil.ignore_patterns('__pycache__'))


setup(
    name='dan-mm',
    version=version,
    description='DAN, facial expression recognition, as an MMPretrain plugin',
    long_description=readme,
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['dan_mm', 'dan_mm.*']),
    package_data={'dan_mm': ['weights/*.pth']},
    entry_points=dict(console_scripts=['dan-mm=dan_mm.cli:main']),
    cmdclass=dict(build_py=BuildWithConfigs),
    python_requires='>=3.10,<3.13',
    install_requires=[
        # Older ones can run code from weights-only files (CVE-2025-32434);
        # mmcv's sources do not compile with newer ones.
        'torch>=2.6,<2.13',
        'torchvision',
        'numpy',
        'opencv-python',
        'pi-heif',
        # its wheels read AVIF from there on
        'pillow>=11.3',
        'rich',
        'scikit-learn',
        'scipy',
        # the maintained forks of the OpenMMLab packages
        'onedl-mmcv>=2.3.6,<2.4',
        'onedl-mmengine>=0.10.12,<1',
        'onedl-mmpretrain>=1.3.6,<2',
    ],
    extras_require=dict(
        demo=['scikit-image'],
        # to train and evaluate the face detector; mmcv with compiled ops, too
        detection=['onedl-mmdetection>=3.5.1,<4'],
        deploy=['onnx', 'onnxruntime'],
        web=['gradio>=6.31,<7'],
        dev=[
            # dlib's ResNet, and dlib to compare with it
            'dlib-bin',
            'face_recognition_models',
            'flake8',
            'isort',
            'latex2mathml',
            'mkdocs-material',
            'mkdocstrings[python]',
            'pre-commit',
            'pytest',
            'pytest-xdist',
            'scikit-image',
            'selenium>=4.51,<5',
            'yapf'
        ],
    ),
)
