# Copyright (c) dan_mm contributors. All rights reserved.
"""Tell the expression of the astronaut of scikit-image: a portrait of Eileen
Collins by NASA, in the public domain, that comes with its wheel."""
import importlib.util
import os.path as osp

import cv2
import numpy as np

from dan_mm import register_all_modules

# Where the detector finds the five landmarks, for machines that can't
# download its weights
LANDMARKS = np.array([[203.7, 102.8], [245.0, 104.2], [224.4, 129.1],
                      [202.7, 139.0], [244.8, 140.1]])


def find_portrait() -> str:
    """Find the image, without importing scikit-image."""
    spec = importlib.util.find_spec('skimage')
    for folder in (spec.submodule_search_locations if spec else ()):
        path = osp.join(folder, 'data', 'astronaut.png')
        if osp.isfile(path):
            return path
    raise SystemExit("Found no scikit-image with its astronaut, expected it: "
                     "`pip install -e '.[demo]'`.")


def main() -> None:
    path = find_portrait()
    register_all_modules()
    from dan_mm.apis import FERInferencer
    from dan_mm.datasets import AlignFace
    inferencer = FERInferencer()
    try:
        face, = inferencer(path)[0].faces
    except OSError as error:
        print(f'The face detector is not here: {error}\nSo the face is cut '
              'out by landmarks that this demo knows.')
        crop = AlignFace(**inferencer.alignment)(dict(
            img=cv2.imread(path), keypoints=LANDMARKS))['img']
        face, = inferencer(crop, aligned=True)[0].faces
    scores = sorted(face.scores.items(), key=lambda item: -item[1])
    print(f'The astronaut of scikit-image, {path}:\n  ' +
          ', '.join(f'{name} {score:.0%}' for name, score in scores[:3]))


if __name__ == '__main__':
    main()
