# Copyright (c) dan_mm contributors. All rights reserved.
"""What the documentation names is there. `mkdocs build --strict` checks the
links inside docs/."""
import os.path as osp
import re
import runpy
from glob import glob

import pytest
from conftest import ROOT

FRONT = ['README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'configs/README.md']
PAGES = FRONT + [
    osp.relpath(path, ROOT)
    for path in glob(f'{ROOT}/docs/**/*.md', recursive=True)
]


def read(page: str) -> str:
    with open(osp.join(ROOT, page), encoding='utf-8') as file:
        return file.read()


@pytest.mark.parametrize('page', FRONT)
def test_links_lead_to_files(page):
    links = re.findall(r'\]\(([^)\s]+)\)', read(page))
    local = [link for link in links if not re.match(r'https?:|#', link)]
    for link in local:
        target, _, anchor = link.partition('#')
        path = osp.normpath(osp.join(osp.dirname(page), target))
        assert osp.exists(osp.join(ROOT, path)), link
        if anchor:
            titles = re.findall('^#+ (.+)$', read(path), re.M)
            slugs = [
                re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')
                for title in titles
            ]
            assert anchor in slugs, link


@pytest.mark.parametrize('page', PAGES)
def test_tools_and_configs_exist(page):
    for path in re.findall(r'\b(?:tools|configs)/[\w/.-]+\.(?:py|sh)\b',
                           read(page)):
        assert osp.isfile(osp.join(ROOT, path)), path


def test_docstrings_become_markdown():
    to_markdown = runpy.run_path(
        f'{ROOT}/docs/rst_docstrings.py')['to_markdown']
    assert to_markdown('See :class:`~torch.nn.Linear`, :func:`align`') == (
        'See `Linear`, `align`')
    assert to_markdown('of `DAN\n<https://x.org/1>`_.') == (
        'of [DAN](https://x.org/1).')
    block = to_markdown('Loss:\n\n.. math::\n    a^2 +\n    b\n\nMore.')
    assert '<msup>' in block and block.endswith('More.')
    assert 'display="block"' in block and '.. math' not in block
