# Copyright (c) dan_mm contributors. All rights reserved.
"""Evaluate a model together with the face detector: on portraits, and on the
validation images of FER+ pasted into larger scenes."""
import argparse
import csv
import os.path as osp
from typing import Optional, Sequence, Tuple

import cv2
import numpy as np
from rich.progress import track
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, roc_auc_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from dan_mm.apis import FaceDetector, FERInferencer
from dan_mm.datasets import FERPlus
from dan_mm.datasets.base import canonical_name


def parse_args(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'model',
        nargs='?',
        help='a checkpoint, a work folder, or a name of the index (default: '
        'the shipped model)')
    parser.add_argument(
        '--portraits',
        help='a folder with index.csv, which has the columns `file` and '
        '`expression` and optionally `person`, such as the Face Research Lab '
        'London Set')
    parser.add_argument(
        '--ferplus', help='the folder of FER+, of which FER2013Valid is taken')
    parser.add_argument(
        '--num', type=int, help='how many images of FER+ (default: all)')
    parser.add_argument('--device')
    args = parser.parse_args(argv)
    if not (args.portraits or args.ferplus):
        parser.error('Got neither --portraits nor --ferplus, expected one or '
                     'both.')
    return args


def print_confusion(names: Sequence[str], truth: np.ndarray,
                    found: np.ndarray) -> None:
    """Print a confusion matrix: a row for each class that occurs."""
    table = confusion_matrix(truth, found, labels=range(len(names)))
    print('\ntruth \\ answer  ' + ' '.join(f'{name[:9]:>9}' for name in names))
    for name, row in zip(names, table):
        if row.sum():
            print(f'{name:14}  ' + ' '.join(f'{value:9}' for value in row))


def examine_portraits(inferencer: FERInferencer, folder: str) -> None:
    """Print the accuracy on portraits with known expressions."""
    index = osp.join(folder, 'index.csv')
    with open(index, newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    if not rows or not {'file', 'expression'} <= rows[0].keys():
        raise ValueError(f'{index} has {len(rows)} rows, expected some, with '
                         'the columns file and expression.')
    classes = [canonical_name(name) for name in inferencer.classes]
    for row in rows:
        if canonical_name(row['expression']) not in classes:
            raise ValueError(
                f'{index} has the expression {row["expression"]!r}, expected '
                f'one of the classes of the model, {inferencer.classes}.')
    truth = np.array(
        [classes.index(canonical_name(row['expression'])) for row in rows])
    paths = [osp.join(folder, row['file']) for row in rows]
    counts, scores = [], []
    for result in track(
            inferencer.stream(paths), 'Portraits', total=len(paths)):
        if result.error:
            raise ValueError(result.error)
        counts.append(len(result.faces))
        largest = sorted(
            result.faces,
            key=lambda face: -np.prod(face.bbox[2:] - face.bbox[:2]))
        scores += [list(face.scores.values()) for face in largest[:1]]
    found = np.array(counts) > 0
    print(
        f'\n{len(rows)} portraits of {folder}: a face found in '
        f'{found.mean():.1%}, exactly one in {counts.count(1) / len(rows):.1%}'
    )
    if not found.any():
        return
    scores, truth = np.array(scores), truth[found]
    answers = scores.argmax(1)
    print(f'accuracy, all {len(classes)} classes allowed: '
          f'{(answers == truth).mean():.1%}')
    for label in np.unique(truth):
        of_class = answers[truth == label] == label
        print(f'  {classes[label]:12} {of_class.mean():.1%} of '
              f'{len(of_class)}')
    print_confusion(classes, truth, answers)
    if {'happiness', 'neutral'} <= set(classes):
        compare_two(
            np.array([row.get('person', '') for row in rows])[found], truth,
            scores, classes.index('happiness'), classes.index('neutral'))


def compare_two(persons: np.ndarray, truth: np.ndarray, scores: np.ndarray,
                happy: int, neutral: int) -> None:
    """Print how well happiness and neutral are distinguished."""
    both = (truth == happy) | (truth == neutral)
    if len(np.unique(truth[both])) < 2:
        return
    persons, smiles = persons[both], truth[both] == happy
    margin = np.log(scores[both, happy] / scores[both, neutral])
    print('\nhappiness against neutral, at equal scores: '
          f'{((margin > 0) == smiles).mean():.1%} accuracy, '
          f'{roc_auc_score(smiles, margin):.3f} ROC AUC')
    pairs = [(margin[mask & smiles].mean(), margin[mask & ~smiles].mean())
             for mask in (persons == person for person in np.unique(persons))
             if (mask & smiles).any() and (mask & ~smiles).any()]
    if len(pairs) > 1:
        higher = sum(smiling > plain for smiling, plain in pairs)
        print('the smiling photograph scores higher for happiness than the '
              f'neutral one in {higher} of {len(pairs)} subjects')
        predicted = cross_val_predict(
            LogisticRegression(class_weight='balanced'),
            margin[:, None],
            smiles,
            groups=persons,
            cv=LeaveOneGroupOut())
        print('accuracy with a leave-one-subject-out threshold: '
              f'{(predicted == smiles).mean():.1%}')


def paste(image: np.ndarray, scenes: Sequence[np.ndarray],
          rng: np.random.Generator) -> Tuple[np.ndarray, np.ndarray]:
    """Paste an image into a scene, 2 to 5 times as large."""
    scale = rng.uniform(2, 5)
    face = cv2.resize(
        image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    scene = scenes[rng.integers(len(scenes))].copy()
    height, width = face.shape[:2]
    top = rng.integers(scene.shape[0] - height)
    left = rng.integers(scene.shape[1] - width)
    scene[top:top + height, left:left + width] = face
    return scene, np.array([left, top, left + width, top + height])


def examine_pasted(inferencer: FERInferencer,
                   args: argparse.Namespace) -> None:
    """Print the accuracy on images of FER+ as they are, and in scenes."""
    dataset = FERPlus(args.ferplus, split='val')
    if tuple(map(canonical_name,
                 inferencer.classes)) != tuple(dataset.metainfo['classes']):
        raise ValueError(
            f'The model has the classes {inferencer.classes}, expected those '
            f'of FER+, {dataset.metainfo["classes"]}.')
    rng = np.random.default_rng(0)
    order = rng.permutation(len(dataset))[:args.num]
    # China and flower, without people
    scenes = [scene[..., ::-1] for scene in load_sample_images().images]
    truth, clean, pasted = [], [], []
    faces_elsewhere = 0
    for start in track(range(0, len(order), 64), 'FER+'):
        infos = [
            dataset.get_data_info(int(i)) for i in order[start:start + 64]
        ]
        truth += [int(info['gt_label']) for info in infos]
        images = [cv2.imread(info['img_path']) for info in infos]
        clean += [
            list(result.faces[0].scores.values())
            for result in inferencer(images, aligned=True)
        ]
        made = [paste(image, scenes, rng) for image in images]
        for result, (_, place) in zip(
                inferencer([scene for scene, _ in made]), made):
            inside = []
            for face in result.faces:
                centre = (face.bbox[:2] + face.bbox[2:]) / 2
                if (place[:2] < centre).all() and (centre < place[2:]).all():
                    inside.append(face)
            faces_elsewhere += len(result.faces) - len(inside)
            pasted.append(list(inside[0].scores.values()) if inside else None)
    truth, clean = np.array(truth), np.array(clean).argmax(1)
    found = np.array([item is not None for item in pasted])
    print(f'\n{len(truth)} images of FER+ pasted into scenes at 2 to 5 '
          f'times their size: {found.mean():.1%} found, and '
          f'{faces_elsewhere} faces elsewhere')
    print(f'accuracy on the clean crops: {(clean == truth).mean():.1%}')
    if not found.any():
        return
    answers = np.array([item for item in pasted if item is not None]).argmax(1)
    right = answers == truth[found]
    print(f'accuracy in the scenes: {right.mean():.1%} of the found faces '
          f'({(clean == truth)[found].mean():.1%} on their clean crops), '
          f'{right.sum() / len(truth):.1%} of all')
    print_confusion(inferencer.classes, truth[found], answers)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    try:
        inferencer = FERInferencer(
            args.model,
            detector=FaceDetector(device=args.device),
            device=args.device,
            batch_size=16)
        if args.portraits:
            examine_portraits(inferencer, args.portraits)
        if args.ferplus:
            examine_pasted(inferencer, args)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(str(error))


if __name__ == '__main__':
    main()
