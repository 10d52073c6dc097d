# Copyright (c) dan_mm contributors. All rights reserved.
"""Find what is wrong with this installation, and how to fix it.

The exit status is 1 if there is a problem.
"""
import argparse
import faulthandler
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from importlib.metadata import packages_distributions
from typing import Iterator, NamedTuple, Optional, Tuple

from dan_mm.version import VERSIONS, digits, fits, installed, requirement

HELP = 'find what is wrong with this installation, and how to fix it'
TIMEOUT = 120  # seconds, for one import or command
# The pip of this Python, which may not be the first on the PATH
PIP = f'{shlex.quote(sys.executable)} -m pip'
REINSTALL = f'{PIP} install --force-reinstall --no-deps'
BUILD_OPS = f'''{PIP} install "setuptools<82" wheel ninja
{REINSTALL} --no-build-isolation --no-cache-dir "{requirement('mmcv')}"
with a C++ compiler; for Python 3.10 and 3.12, there are prebuilt wheels:
https://mmwheels.onedl.ai'''
OTHER_TORCH = f'''update its driver, or
{PIP} install --force-reinstall torch torchvision
with the --index-url that https://pytorch.org/get-started names for your GPU;
then build the ops of mmcv again, if you need them'''
DETECTOR = 'needed only to train and evaluate the face detector'


class Finding(NamedTuple):
    """What was found, and how to fix it. The level is ``'ok'``, ``'hint'``
    (something optional), ``'warning'`` or ``'problem'``."""
    level: str
    found: str
    fix: str = ''


def probe(timeout: int) -> None:
    """Import everything, and print the name of each step and what it found.

    An import can crash, hang or exit: this runs in a process of its own.
    """

    def step(name: str) -> None:
        faulthandler.dump_traceback_later(timeout, exit=True)
        print(f'\nStep {name}', flush=True)

    faulthandler.enable()
    step('torch')
    import torch
    step('the GPU')
    with warnings.catch_warnings(record=True) as caught:
        available = torch.cuda.is_available()
    if available:
        torch.ones(2, device='cuda').sum().item()
    print('\n' + json.dumps([
        available, torch.version.cuda or torch.version.hip, ' '.join(
            str(warning.message) for warning in caught)
    ]))
    step('torchvision')
    import torchvision
    torchvision.ops.nms(torch.ones(1, 4), torch.ones(1), 0.5)
    step('cv2')
    import cv2  # noqa: F401
    step('mmengine')
    from mmengine.utils.dl_utils import collect_env
    print('\n' + json.dumps(collect_env(), default=str))
    for name in ('mmcv', 'mmpretrain', 'dan_mm.apis', 'mmcv._ext',
                 *(['dan_mm.detection'] if find('mmdet') else [])):
        step(name)
        importlib.import_module(name)
    step('end')


def start(*command: str, timeout: Optional[int] = TIMEOUT) -> Tuple[str, str]:
    """Run a command, and return its output and its errors."""
    # Modules are those of this process, not of the current folder.
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    try:
        process = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors='replace',
            timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return '', str(error)
    return process.stdout, process.stderr


def find(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    # What an uninstallation leaves is a namespace.
    return spec is not None and spec.origin is not None


def check_package(module: str) -> Finding:
    """Check the version of a module, and that one distribution has it."""
    package, low, high = VERSIONS[module]
    names = {package, *packages_distributions().get(module, ())}
    found = {name: installed(name) for name in sorted(filter(None, names))}
    found = {name: version for name, version in found.items() if version}
    text = ' and '.join(map(' '.join, found.items()))
    fix = f'{PIP} install "{requirement(module)}"'
    if found.keys() - {package}:
        # Uninstalling one of several removes files of the others.
        fix = f'{PIP} uninstall -y {" ".join(found)}\n{fix}'
    if not find(module):
        if module == 'mmdet':
            return Finding('hint', f'mmdet is missing, {DETECTOR}', fix)
        if package in found:  # pip would not install it again
            fix = f'{REINSTALL} "{requirement(module)}"'
        text = f'{module} is missing'
    elif module == 'cv2' and len(set(found.values())) > 1:
        # MMDetection needs both distributions of OpenCV.
        version = found.get(package) or max(found.values(), key=digits)
        fix = ' '.join([REINSTALL, *(f'{name}=={version}' for name in found)])
        text += ' overwrite each other'
    elif module != 'cv2' and len(found) > 1:
        text += ' overwrite each other'
    elif all(fits(version, low, high) for version in found.values()):
        return Finding('ok', f'{module}: {text or "of unknown version"}')
    return Finding('problem', f'{text}, expected {requirement(module)}', fix)


def check_requirements() -> Iterator[Finding]:
    """Check what installed packages require, except for those above."""
    checked = [package for package, *_ in VERSIONS.values()]
    output, _ = start(sys.executable, '-m', 'pip', 'check')
    for own, wanted, name in re.findall(
            r'^(\S+) .* require\w+ (([\w.-]+).*), (?:which|but) .*$', output,
            re.M):
        if own != 'dan-mm' or name not in checked:
            yield Finding(
                'problem' if own == 'dan-mm' else 'warning',
                f'{own} requires {wanted}, found {name} '
                f'{installed(name) or "missing"}',
                f'{PIP} install {shlex.quote(wanted)}')


def check_gpu(available: bool, build: Optional[str], warning: str) -> Finding:
    """Check that torch, built for a version of CUDA, uses the GPU."""
    if available:
        return Finding('ok', 'torch uses the GPU')
    output, _ = start('nvidia-smi', '-L')
    gpus = re.findall(r'^GPU \d+: (.+?)(?: \(UUID.*)?$', output, re.M)
    if not gpus and not warning:
        return Finding('ok', 'no NVIDIA GPU')
    found = f'{", ".join(gpus) or "the GPU"} is not used'
    if build and not warning and 'CUDA_VISIBLE_DEVICES' in os.environ:
        return Finding('hint', f'{found}: CUDA_VISIBLE_DEVICES hides it',
                       'unset CUDA_VISIBLE_DEVICES')
    warning = warning or (f'torch for CUDA {build} does not find it'
                          if build else 'torch was built without CUDA')
    return Finding('warning', f'{found}: {warning}', OTHER_TORCH)


def explain(step: str, error: str) -> Finding:
    """Explain why a step of :func:`probe` failed."""
    torch = installed('torch')
    package = requirement(step) if step in VERSIONS else 'dan-mm'
    fix = f'{REINSTALL} "{package}"'
    if step == 'the GPU':
        fix = f'export CUDA_VISIBLE_DEVICES=    # the CPU, or\n{OTHER_TORCH}'
    elif step == 'torchvision':
        # Both are released together; each build has an index of its own.
        version, _, build = torch.partition('+')
        _, minor, patch = digits(version)
        error += f'; expected the torchvision of torch {torch}'
        fix = f'{REINSTALL} torchvision==0.{minor + 15}.{patch}'
        if build:
            fix += f' --index-url https://download.pytorch.org/whl/{build}'
    elif step == 'mmcv._ext' and "No module named 'mmcv._ext'" in error:
        return Finding('warning' if find('mmdet') else 'hint',
                       f'mmcv has no compiled ops, {DETECTOR}', BUILD_OPS)
    elif step == 'mmcv._ext':
        error += f'; expected ops that were built with torch {torch}'
        fix = BUILD_OPS
    elif step == 'cv2' and '.so' in error:
        fix = 'apt-get install libgl1 libglib2.0-0'
    elif error.startswith('ModuleNotFoundError'):
        # pip installs what it requires.
        fix = f'{PIP} install "{package}"'
    return Finding('problem', f'{step} fails: {error}', fix)


def examine() -> Iterator[Finding]:
    """Examine this installation."""
    findings = [*map(check_package, VERSIONS), *check_requirements()]
    yield from findings
    output, errors = start(
        sys.executable,
        '-c', 'import sys; sys.path[:] = filter(None, sys.path); '
        f'from dan_mm.cli.doctor import probe; probe({TIMEOUT})',
        timeout=None)
    steps = re.split('^Step (.*)\n', output, flags=re.M)[1:] or ['Python', '']
    *passed, (step, _) = zip(steps[::2], steps[1::2])
    for name, printed in passed:
        if name in ('the GPU', 'mmengine'):
            result = json.loads(printed.strip().split('\n')[-1])
            yield check_gpu(*result) if name == 'the GPU' else Finding(
                'ok', ', '.join(f'{key} {value}'
                                for key, value in result.items()
                                if '\n' not in str(value)))
    if step == 'end':
        yield Finding('ok', 'everything can be imported')
        return
    # Consequences of the above are not reported again.
    if all(level != 'problem' for level, *_ in findings) or not (
            step.startswith('dan_mm') or step in VERSIONS and not find(step)):
        error = re.findall(
            r'^(?:[\w.]*(?:[Ee]rror|Exception)\b|Fatal|Timeout).*', errors,
            re.M) or ['Python ended']
        yield explain(step, error[-1])
    if step != 'mmcv._ext':
        yield Finding('warning',
                      'the rest was not examined: fix the above, and repeat')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command line: there are none."""


def run(args: argparse.Namespace) -> int:
    print('Examining this installation, up to a minute ...\n', flush=True)
    levels = []
    for level, found, fix in examine():
        levels.append(level)
        print(f'{level:8} {found}', flush=True)
        if fix:
            print('    fix: ' + fix.replace('\n', '\n         '), flush=True)
    print('\n' + ', '.join(f'{level}s: {levels.count(level)}'
                           for level in ('problem', 'warning', 'hint')))
    return int('problem' in levels)
