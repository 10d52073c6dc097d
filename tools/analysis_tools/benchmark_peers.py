# Copyright (c) dan_mm contributors. All rights reserved.
"""Measure other packages that carry their weights on FER2013Valid: accuracy
over the seven classes without contempt, and time a face, all in one run.

They get what the shipped model gets: the crop of a face, whole. None of them
is needed by this project; give the environments where they are::

    python -m venv fer && fer/bin/pip install fer 'setuptools<81'
    python -m venv facex && facex/bin/pip install facex
    mkdir node && npm --prefix node install @vladmandic/face-api \\
        @tensorflow/tfjs @tensorflow/tfjs-backend-wasm
"""
import argparse
import json
import os.path as osp
import subprocess
import tempfile
from time import perf_counter
from typing import Optional, Sequence

import numpy as np
from mmpretrain.evaluation import Accuracy
from rich.progress import track

from dan_mm.apis import FERInferencer
from dan_mm.datasets import FERPlus
from dan_mm.reading import read_image

# Names that others have for ours
NAMES = dict(
    angry='anger',
    disgusted='disgust',
    fearful='fear',
    happy='happiness',
    sad='sadness',
    surprised='surprise')
# Each program reads images, uint8 of shape (N, 48, 48, 3), BGR, and writes the
# scores of each by name, and the seconds that it took for all.
PYTHON = """
import json, sys, time
import numpy as np
{0}
images = np.load(sys.argv[1] + '/images.npy')
classify(images[0])
start = time.perf_counter()
scores = [{{name: float(score) for name, score in classify(img).items()}}
          for img in images]
seconds = time.perf_counter() - start
json.dump(dict(seconds=seconds, scores=scores),
          open(sys.argv[1] + '/answer.json', 'w'))
"""
FER = PYTHON.format("""
from fer.fer import FER
detector = FER()
def classify(img):
    box = [0, 0, img.shape[1], img.shape[0]]
    return detector.detect_emotions(img, [box])[0]['emotions']
""")
FACEX = PYTHON.format("""
import cv2
from facex import PoolManager
model = PoolManager(1).get_classifier()
def classify(img):
    return model.detect_emotion(cv2.cvtColor(img, cv2.COLOR_BGR2GRAY))
""")
FACE_API = """
const fs = require('fs');
const home = process.argv[2] + '/node_modules/@vladmandic/face-api';
const faceapi = require(home + '/dist/face-api.node-wasm.js');
(async () => {
  await faceapi.tf.setBackend('wasm');
  await faceapi.tf.ready();
  const net = faceapi.nets.faceExpressionNet;
  await net.loadFromDisk(home + '/model');
  const bytes = fs.readFileSync(process.argv[3] + '/images.bin');
  const size = 48 * 48 * 3;
  const classify = async (start) => {
    const rgb = Int32Array.from(bytes.subarray(start, start + size));
    const tensor = faceapi.tf.tensor3d(rgb, [48, 48, 3], 'int32');
    const scores = await net.predictExpressions(tensor);
    tensor.dispose();
    return scores;
  };
  await classify(0);
  const begin = performance.now(), scores = [];
  for (let start = 0; start < bytes.length; start += size)
    scores.push(await classify(start));
  const seconds = (performance.now() - begin) / 1000;
  fs.writeFileSync(process.argv[3] + '/answer.json',
                   JSON.stringify({seconds, scores}));
})();
"""


def ask(command: Sequence[str], images: np.ndarray) -> dict:
    """Run a program on images. Its last line is raised as RuntimeError if it
    fails."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(osp.join(folder, 'images.npy'), images)
        # RGB, for JavaScript
        images[..., ::-1].tofile(osp.join(folder, 'images.bin'))
        process = subprocess.run([*command, folder],
                                 capture_output=True,
                                 text=True)
        path = osp.join(folder, 'answer.json')
        if process.returncode or not osp.exists(path):
            lines = (process.stderr or process.stdout).strip().splitlines()
            raise RuntimeError(
                lines[-1] if lines else f'it ended with {process.returncode}')
        with open(path) as file:
            return json.load(file)


def ours(images: np.ndarray, model: Optional[str]) -> dict:
    """Ask a model of ours, one face at a time like the others."""
    inferencer = FERInferencer(model)
    inferencer(images[0], aligned=True)
    start = perf_counter()
    scores = [
        inferencer(img, aligned=True)[0].faces[0].scores for img in images
    ]
    return dict(seconds=perf_counter() - start, scores=scores)


def accuracy(scores: Sequence[dict], labels: Sequence[int],
             classes: Sequence[str]) -> float:
    """The accuracy in percent over classes that all have."""
    rows = []
    for answer in scores:
        named = {
            NAMES.get(name, name): value
            for name, value in answer.items()
        }
        rows.append([named[name] for name in classes])
    [value] = Accuracy.calculate(np.array(rows, np.float32), np.array(labels))
    return float(value[0])


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n\n')[0],
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', help='the folder of FER+')
    parser.add_argument('--export', help='a folder of `dan-mm export`, too')
    parser.add_argument('--fer', help='an environment with the package fer')
    parser.add_argument(
        '--facex', help='an environment with the package facex')
    parser.add_argument(
        '--face-api', help='a folder with @vladmandic/face-api from npm')
    parser.add_argument('--number', type=int, help='of images (all)')
    args = parser.parse_args(argv)

    dataset = FERPlus(args.data, split='val')
    classes = [name for name in dataset.CLASSES if name != 'contempt']
    samples = [
        info for info in map(dataset.get_data_info, range(len(dataset)))
        if dataset.CLASSES[info['gt_label']] in classes
    ][:args.number]
    labels = [
        classes.index(dataset.CLASSES[info['gt_label']]) for info in samples
    ]
    images = np.stack([read_image(info['img_path']) for info in samples])
    rows = {'dan_mm, shipped model': lambda: ours(images, None)}
    if args.export:
        rows['dan_mm, exported'] = lambda: ours(images, args.export)
    for name, folder, code in (('fer', args.fer, FER), ('facex', args.facex,
                                                        FACEX)):
        rows[name] = lambda folder=folder, code=code: ask(
            [osp.join(folder, 'bin', 'python'), '-c', code], images)
        if not folder:
            rows[name] = None
    rows['face-api'] = args.face_api and (
        lambda: ask(['node', '-e', FACE_API, '-',
                     osp.abspath(args.face_api)], images))
    print(f'{len(images)} faces of FER2013Valid, 48x48, {len(classes)} '
          'classes, one at a time')
    for name, run in track(rows.items(), 'Measuring', transient=True):
        if not run:
            print(f'{name:22} not measured: no --{name}')
            continue
        try:
            answer = run()
        except (OSError, RuntimeError) as error:
            print(f'{name:22} does not run: {error}')
            continue
        print(f'{name:22} {accuracy(answer["scores"], labels, classes):6.2f} %'
              f' {1e3 * answer["seconds"] / len(images):8.2f} ms a face')


if __name__ == '__main__':
    main()
