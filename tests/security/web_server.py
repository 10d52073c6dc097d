# Copyright (c) dan_mm contributors. All rights reserved.
"""`dan-mm web` with a model that is none: it sees a face in every image. It
takes a minute for one of 10x10 pixels, and half a second for each frame of a
video of 32x32."""
import sys
import time

import numpy as np

from dan_mm import apis, cli
from dan_mm.apis.media import read
from dan_mm.reading import MediaReader


class Model:
    about = 'Trained on nothing.'
    synthetic = False

    def __init__(self, *args, **kwargs):
        """Takes anything."""

    def __call__(self, img, **kwargs):
        height, width = img.shape[:2]
        if (height, width) == (10, 10):
            time.sleep(60)
        face = apis.FaceResult(
            dict(anger=0.1, happiness=0.9),
            bbox=np.float32([0, 0, width, height]),
            crop=img)
        return [apis.ImageResult(faces=[face])]

    def stream_images(self, path, smoothing):
        for image in read([path], MediaReader()):
            if image.img is None:
                yield image, apis.ImageResult(error=image.error)
                continue
            if image.img.shape[:2] == (32, 32):
                time.sleep(0.5)
            [result] = self(image.img)
            result.faces[0].track = 0
            result.frame, result.time = image.frame, image.time
            yield image, result


if __name__ == '__main__':
    apis.FERInferencer = Model
    sys.exit(cli.main(['web', 'model', *sys.argv[1:]]))
