# Copyright (c) dan_mm contributors. All rights reserved.
"""Labels that can be read."""
import numpy as np
import pytest
from PIL import ImageDraw, ImageFont

from dan_mm.apis import FaceResult, draw_faces
from dan_mm.apis.drawing import find_font


@pytest.fixture
def labels(monkeypatch):
    """The text, font and box of each label that is drawn."""
    found, boxes = [], []
    write, fill = ImageDraw.ImageDraw.text, ImageDraw.ImageDraw.rectangle

    def text(self, place, text, color, font):
        found.append((text, font, boxes[-1]))
        write(self, place, text, color, font)

    def rectangle(self, box, *args, **kwargs):
        boxes.append(box)
        fill(self, box, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, 'text', text)
    monkeypatch.setattr(ImageDraw.ImageDraw, 'rectangle', rectangle)
    return found


def face(name, left, top, size=60):
    return FaceResult({
        name: 0.9,
        'other': 0.1
    },
                      bbox=np.float32([left, top, left + size, top + size]))


@pytest.mark.parametrize('name', [
    'happiness', 'très heureux', 'радость', 'χαρά', 'سعيد', '高兴', '嬉しい', '행복',
    'खुश', 'สุข', '😀'
])
def test_any_script(labels, name):
    img = np.zeros((120, 300, 3), np.uint8)
    draw_faces(img, [face(name, 20, 40)])
    [(text, font, _)] = labels
    assert text.startswith('1 ') and text.endswith(' 90%')
    assert font.path == find_font(text[2:-4])
    # No letter is the box that stands for what a font does not have.
    missing = bytes(font.getmask('\uffff'))
    for letter in set(text) - {' '}:
        assert bytes(font.getmask(letter)) != missing


def test_the_first_fonts_need_no_system(monkeypatch):
    monkeypatch.setattr('matplotlib.font_manager.findSystemFonts', list)
    find_font.cache_clear()
    assert find_font('è').endswith('DejaVuSans.ttf')
    assert find_font('高兴').endswith('NotoSansSC-Regular.ttf')
    assert find_font('행복') == ''
    find_font.cache_clear()


def test_labels_of_neighbours_do_not_cover_each_other(labels):
    img = np.zeros((500, 700, 3), np.uint8)
    faces = [
        face('happiness', 60 + 85 * column, 60 + 130 * row) for row in range(3)
        for column in range(7)
    ]
    assert draw_faces(img, faces).any() and not img.any()
    boxes = np.array([box for *_, box in labels])
    assert len(boxes) == 21
    assert (boxes >= 0).all() and (boxes[:, 2:] <= (700, 500)).all()
    for i, one in enumerate(boxes):
        low = np.maximum(boxes[:i, :2], one[:2])
        high = np.minimum(boxes[:i, 2:], one[2:])
        assert not (high - low > 1).all(1).any()


def test_fonts_are_as_large_as_faces(labels):
    img = np.zeros((400, 700, 3), np.uint8)
    draw_faces(img, [face('fear', 0, 100, 20), face('fear', 300, 100, 250)])
    small, large = (font.size for _, font, _ in labels)
    assert isinstance(labels[0][1], ImageFont.FreeTypeFont)
    assert 9 <= small < large <= 18
