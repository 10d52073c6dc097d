# Copyright (c) dan_mm contributors. All rights reserved.
"""Convert public weights of RetinaFace to MMDet: those of its code in PyTorch,
https://github.com/biubug6/Pytorch_Retinaface, with MobileNetV1 x0.25 or
ResNet-50, or of that MobileNetV1 trained on ImageNet."""
import argparse
import sys
from typing import Optional, Sequence

from dan_mm.errors import CheckpointLoadError
from dan_mm.models.retinaface_weights import convert_file


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='the public weights')
    parser.add_argument('dst', help='the file to write')
    args = parser.parse_args(argv)
    try:
        number = convert_file(args.src, args.dst)
    except (CheckpointLoadError, ValueError) as error:
        raise SystemExit(str(error))
    except OSError as error:
        print(
            f'Cannot convert {args.src} to {args.dst}: '
            f'{error.strerror or error}. Check the '
            'paths, and the space on the disk.',
            file=sys.stderr)
        sys.exit(2)
    print(f'Wrote {number} tensors to {args.dst}.')


if __name__ == '__main__':
    main()
