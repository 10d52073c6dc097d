# Copyright (c) dan_mm contributors. All rights reserved.
"""Docstrings are reStructuredText, as those of OpenMMLab; the site is
Markdown."""
import re
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert


def _to_block(match: re.Match) -> str:
    latex = ' '.join(match[1].split())
    return f'\n\n{convert(latex, display="block")}\n\n'


def to_markdown(text: str) -> str:
    """Translate the markup that docstrings of this project use."""
    text = re.sub(r'\.\. math::\n((?:\s+.*\n?)+?)(?=\n\S|\Z)', _to_block, text)
    text = re.sub(r':math:`([^`]+)`',
                  lambda match: f'<span>{convert(match[1])}</span>', text)
    text = re.sub(r':\w+:`~?(?:[\w.]+\.)?(\w+)`', r'`\1`', text)
    return re.sub(r'`([^`<]+?)\s+<([^`>]+)>`_', r'[\1](\2)', text)


class RstDocstrings(Extension):
    """Translate each docstring as it is loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
