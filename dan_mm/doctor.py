# Copyright (c) dan_mm contributors. All rights reserved.
# This has to work where nothing else does: it imports the standard library
# alone. What can fail, crash or hang is done in another process, which runs
# this file as a script.
import faulthandler
import importlib.metadata
import importlib.util
import json
import os
import os.path as osp
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import warnings
from typing import Dict, List, NamedTuple, Sequence

# Not `from .version`: a script is in no package.
TABLES = runpy.run_path(osp.join(osp.dirname(__file__), 'version.py'))
PYTHON, VERSIONS, MMDET, digits = (
    TABLES[name] for name in ('PYTHON', 'VERSIONS', 'MMDET', 'digits'))
OTHERS = (
    ('numpy', 'numpy'),
    ('cv2', 'opencv-python'),
    ('torchvision', 'torchvision'),
    ('PIL', 'pillow'),
    ('pi_heif', 'pi-heif'),
    ('rich', 'rich'),
    ('scipy', 'scipy'),
    ('sklearn', 'scikit-learn'),
)
OPTIONAL = (
    ('mmdet', 'to train and evaluate the face detector'),
    ('gradio', 'for the web page'),
    ('onnxruntime', 'to run exported models'),
)
# That of this Python, which may not be the first on the PATH.
PIP = ('pip' if osp.dirname(shutil.which('pip') or '') == osp.dirname(
    sys.executable) else f'{shlex.quote(sys.executable)} -m pip')
BUILD_OPS = f'''{PIP} install "setuptools<82" wheel ninja
{PIP} install --no-build-isolation --no-cache-dir --force-reinstall \
--no-deps onedl-mmcv==2.3.6
which takes a C++ compiler (apt-get install build-essential); or, for Python
3.10 and 3.12, install a wheel of the maintainers: https://mmwheels.onedl.ai'''
OTHER_TORCH = f'''{PIP} install --force-reinstall torch torchvision
with the --index-url that https://pytorch.org/get-started names for your GPU,
and build the ops of mmcv anew, if you have them'''
NEW_DRIVER = f'update the driver of the GPU, or:\n{OTHER_TORCH}'

# Versions of distributions by their names, by the module that they have.
Owners = Dict[str, Dict[str, str]]


class Need(NamedTuple):
    """A module, the distribution that has it, the first version that fits and
    the first that doesn't any more."""
    module: str
    package: str
    low: str = ''
    high: str = ''

    @property
    def requirement(self) -> str:
        """The argument for pip."""
        bounds = f'>={self.low},<{self.high}' if self.low else ''
        return self.package + bounds


class Finding(NamedTuple):
    """What was found about one thing.

    Args:
        level (str): ``'ok'``, ``'hint'`` (something optional), ``'warning'``
            or ``'problem'``.
        found (str): What was found and what was expected.
        mend (str): How to mend it, in lines. Defaults to ``''``.
    """
    level: str
    found: str
    mend: str = ''


def _module(name: str) -> Dict:
    module = importlib.import_module(name)
    # What an uninstallation leaves can be imported as a namespace.
    if getattr(module, '__file__', None) is None:
        raise ImportError(f'found a folder without code, {module.__path__}')
    return dict(
        version=getattr(module, '__version__', None), path=module.__file__)


def _torchvision() -> Dict:
    import torch
    import torchvision
    torchvision.ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.ones(1), .5)
    return _module('torchvision')


def _ops() -> Dict:
    import torch  # noqa: F401
    return _module('mmcv._ext')


def _dan_mm() -> Dict:
    import dan_mm
    dan_mm.register_all_modules(init_default_scope=False)
    return _module('dan_mm')


def _configs() -> Dict:
    from dan_mm.apis.model_index import find_configs
    return dict(path=find_configs())


def _gpu() -> Dict:
    import torch
    gpus, version = [], torch.version
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        if torch.cuda.is_available():
            for i in range(torch.cuda.device_count()):
                gpu = torch.cuda.get_device_properties(i)
                gpus.append(f'{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB')
            torch.ones(2, device='cuda').sum().item()
        elif torch.backends.mps.is_available():
            gpus.append('MPS')
    return dict(
        gpus=gpus,
        build=f'CUDA {version.cuda}'
        if version.cuda else f'ROCm {version.hip}' if version.hip else '',
        said=' '.join(str(warning.message) for warning in caught))


def _cache() -> Dict:
    import torch
    return dict(path=torch.hub.get_dir())


# Other names are those of modules.
PROBES = {
    'torchvision': _torchvision,
    'mmcv._ext': _ops,
    'dan_mm': _dan_mm,
    'the configs': _configs,
    'the GPU': _gpu,
    'the cache': _cache,
}


def answer(path: Sequence[str], names: Sequence[str], failed: Sequence[str],
           timeout: float) -> None:
    """Run probes and print what they return, in a line of JSON each, up to
    the first that fails: it leaves modules half imported.

    Args:
        path (Sequence[str]): Where modules are found.
        names (Sequence[str]): Keys of ``PROBES``, or modules to import.
        failed (Sequence[str]): Those which failed, not to be tried again.
        timeout (float): How many seconds each may take.
    """
    sys.path[:] = path
    sys.modules.update(dict.fromkeys(failed))
    faulthandler.enable()
    # What modules print when they are imported goes elsewhere.
    output = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for probe in names:
        faulthandler.dump_traceback_later(timeout, exit=True)
        try:
            result = PROBES.get(probe, lambda: _module(probe))()
        except BaseException as error:
            causes, cause = set(), error
            while cause is not None:
                name = getattr(cause, 'name', None) or ''
                causes |= {name, name.split('.')[0]}
                cause = cause.__context__
            result = dict(
                error=f'{type(error).__name__}: {error}',
                missing=isinstance(error, ModuleNotFoundError)
                and error.name == probe,
                follows=not causes.isdisjoint(failed))
        print(json.dumps(result), file=output, flush=True)
        if 'error' in result:
            break
    # Without taking modules down: some crash then.
    os._exit(0)


def ask(names: Sequence[str], timeout: float) -> Dict[str, Dict]:
    """Run probes in other processes: in one, as long as none fails.

    Args:
        names (Sequence[str]): Keys of ``PROBES``, or modules to import.
        timeout (float): How many seconds each may take.

    Returns:
        dict: What each returned; or its ``error``, whether the module is
        ``missing``, and whether it ``follows`` from another's.
    """
    answers: Dict[str, Dict] = {}
    left = list(names)
    while left:
        failed = [name for name in answers if 'error' in answers[name]]
        message = json.dumps([sys.path, left, failed, timeout], default=str)
        process = subprocess.run([sys.executable, __file__, message],
                                 stdin=subprocess.DEVNULL,
                                 capture_output=True,
                                 text=True,
                                 errors='replace')
        result: Dict = {}
        for line in process.stdout.splitlines():
            result = answers[left.pop(0)] = json.loads(line)
        if left and 'error' not in result:
            # What faulthandler says
            found = re.search(
                r'^(Timeout|Fatal|Windows fatal)(.*)(?s:.*?)'
                r'^  File "([^<].*)", line (\d+)', process.stderr, re.M)
            error = ('{}{} in {}, line {}'.format(
                *found.groups()) if found else
                     f'it ended the process, with status {process.returncode}')
            answers[left.pop(0)] = dict(
                error=error, missing=False, follows=False)
    return answers


def find_owners() -> Owners:
    """Find which distributions have which modules."""
    owners: Owners = {}
    for dist in importlib.metadata.distributions():
        try:
            name = re.sub('[-_.]+', '-', dist.metadata['Name']).lower()
            version = dist.version
        except (KeyError, TypeError):  # what an interrupted pip leaves
            continue
        modules = set((dist.read_text('top_level.txt') or '').split())
        for line in (dist.read_text('RECORD') or '').splitlines():
            modules.add(line.split('/')[0])
        for module in modules:
            owners.setdefault(module, {}).setdefault(name, version)
    return owners


def is_installed(module: str) -> bool:
    """Whether a module is found. It isn't imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def find_nvidia_gpus(timeout: float) -> List[str]:
    """Ask NVIDIA's driver, not torch, for the names of GPUs."""
    try:
        output = subprocess.run(['nvidia-smi', '-L'],
                                capture_output=True,
                                text=True,
                                errors='replace',
                                timeout=timeout).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r'^GPU \d+: (.+?)(?: \(UUID.*)?$', output, re.M)


def list_owners(owners: Dict[str, str]) -> str:
    """Distributions with their versions."""
    return ' and '.join(' '.join(owner) for owner in owners.items())


def install_alone(need: Need, owners: Dict[str, str]) -> str:
    """The commands that install a distribution in place of others."""
    mend = f'{PIP} install "{need.requirement}"'
    # Uninstalling one of several takes files of the others.
    if set(owners) - {need.package}:
        mend = f'{PIP} uninstall -y {" ".join(sorted(owners))}\n{mend}'
    return mend


def check_python() -> Finding:
    """Check the version of Python."""
    found = (f'Python {platform.python_version()}, {sys.executable}, on '
             f'{platform.platform()}')
    if digits(PYTHON[0]) <= sys.version_info[:3] < digits(PYTHON[1]):
        return Finding('ok', found)
    return Finding(
        'problem', f'{found}; expected >={PYTHON[0]},<{PYTHON[1]}',
        'python3.12 -m venv .venv    # and install all in that environment')


def check_module(need: Need, result: Dict, owners: Dict[str, str],
                 torch: str) -> Finding:
    """Check a module that was imported, and its version.

    Args:
        need (Need): The module.
        result (dict): See :func:`ask`.
        owners (dict): Versions of the distributions that have it.
        torch (str): The version of torch, or ``''``.

    Returns:
        Finding: What was found.
    """
    if 'error' in result:
        return check_failure(need, result, owners, torch)
    version = result['version'] or ''.join([*owners.values()][:1])
    found = f'{need.module} {version}'
    if owners:
        found += f' ({list_owners(owners)})'
    if need.low and not (digits(need.low) <= digits(version) < digits(
            need.high)):
        return Finding('problem', f'{found}, expected {need.requirement}',
                       install_alone(need, owners))
    if len(owners) == 1 and digits(version) != digits(*owners.values()):
        return Finding(
            'warning', f'{found}, expected equal versions; the module is '
            f'{result["path"]}', 'remove that, if it is not what you want')
    return Finding(
        'ok', found + (f', in >={need.low},<{need.high}' if need.low else ''))


def check_failure(need: Need, result: Dict, owners: Dict[str, str],
                  torch: str) -> Finding:
    """See :func:`check_module`, for a module that could not be imported."""
    missing, error = result['missing'], result['error']
    mend = install_alone(need, owners)
    # Without these options pip installs what a distribution lacks.
    lacks = 'ModuleNotFoundError' in error and not (missing and owners)
    again = f'{PIP} install --force-reinstall --no-deps '
    if need.module == 'torchvision' and torch:
        # Both are released together; each build has an index of its own.
        version, _, build = torch.partition('+')
        _, minor, patch = digits(version)
        pair = f'torchvision==0.{minor + 15}.{patch}'
        error += f'; expected {pair}, the one for torch {torch}'
        index = f' --index-url https://download.pytorch.org/whl/{build}'
        mend = again + pair + (index if build else '')
    elif need.module == 'cv2' and '.so' in error:
        mend = 'apt-get install libgl1 libglib2.0-0'
    elif not lacks and 'uninstall' not in mend:
        mend = f'{again}"{need.requirement}"'
    if missing:
        return Finding(
            'problem',
            f'{need.module} is missing, expected {need.requirement}', mend)
    return Finding('problem', f'`import {need.module}` fails: {error}', mend)


def check_owners(need: Need, owners: Owners) -> List[Finding]:
    """Check that a module comes from one distribution."""
    own = owners.get(need.module, {})
    if len(own) < 2:
        return []
    names = list_owners(own)
    expected = f'expected {need.requirement} alone'
    mend = install_alone(need, own)
    if need.module != 'cv2':
        return [
            Finding('problem', f'{names} overwrite each other, {expected}',
                    mend)
        ]
    level = 'problem' if len(set(own.values())) > 1 else 'warning'
    # It depends on two of them.
    if 'imaug' in owners.get('imgaug', {}):
        expected = 'expected equal versions, as mmdet needs both, by imaug'
        version = own.get(need.package, max(own.values(), key=digits))
        pins = ' '.join(f'{name}=={version}' for name in sorted(own))
        mend = f'{PIP} install --force-reinstall --no-deps {pins}'
        if level == 'warning':
            level, mend = 'hint', 'leave both'
    return [Finding(level, f'{names} are both cv2, {expected}', mend)]


def check_ops(result: Dict, torch: str) -> Finding:
    """Check the compiled ops of mmcv."""
    if 'error' not in result:
        return Finding('ok', 'mmcv has its compiled ops')
    if result['missing']:
        return Finding(
            'warning' if is_installed('mmdet') else 'hint',
            'mmcv has no compiled ops: expected to train and evaluate the '
            'face detector, and for nothing else', BUILD_OPS)
    reason = 'fail'
    if re.search(r'undefined symbol|\.so|DLL load failed', result['error']):
        reason = f'were built for another torch than {torch}'
    return Finding('problem', f'The ops of mmcv {reason}: {result["error"]}',
                   BUILD_OPS)


def check_gpu(result: Dict, torch: str, nvidia: Sequence[str]) -> Finding:
    """Check that torch works on a GPU, if there is one.

    Args:
        result (dict): See :func:`ask`.
        torch (str): The version of torch.
        nvidia (Sequence[str]): NVIDIA's GPUs according to their driver.

    Returns:
        Finding: What was found.
    """
    if 'error' in result:
        return Finding(
            'problem', f'The GPU fails: {result["error"]}',
            'export CUDA_VISIBLE_DEVICES=    # to use the CPU, or\n'
            f'{NEW_DRIVER}')
    if result['gpus']:
        gpus = '; '.join(result['gpus'])
        build = result['build'] and f'; torch for {result["build"]}'
        return Finding('ok', f'GPU: {gpus}{build}')
    cores = len(os.sched_getaffinity(0)) if hasattr(
        os, 'sched_getaffinity') else os.cpu_count()
    cpu = f'the CPU is used, with {cores} cores'
    level, mend = 'warning', NEW_DRIVER
    if result['said']:
        reason = f'torch {torch} says: {result["said"]}'
    elif not nvidia:
        return Finding('ok', f'no GPU; {cpu}')
    elif not result['build']:
        reason = f'torch {torch} is a build without CUDA, expected one with it'
        mend = OTHER_TORCH
    elif 'CUDA_VISIBLE_DEVICES' in os.environ:
        reason = 'the environment variable CUDA_VISIBLE_DEVICES hides it'
        level, mend = 'hint', 'unset CUDA_VISIBLE_DEVICES'
    else:
        reason = f'torch {torch}, for {result["build"]}, does not find it'
    return Finding(level, '; '.join([*nvidia, reason, cpu]), mend)


def check_cache(folder: str) -> Finding:
    """Check the folder of downloaded weights."""
    place = osp.abspath(folder)
    while not osp.exists(place) and place != osp.dirname(place):
        place = osp.dirname(place)
    mend = 'export TORCH_HOME=FOLDER    # on a disk with space'
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free / 2**30
    except OSError as error:
        return Finding('problem',
                       f'{folder}, for weights, is not writable: {error}',
                       mend)
    return Finding(
        'ok' if free >= 1 else 'warning', f'{folder}, for weights, has '
        f'{free:.1f} GiB of free space' + (', expected 1' if free < 1 else ''),
        mend if free < 1 else '')


def examine(timeout: float) -> List[Finding]:
    """Examine this installation.

    Args:
        timeout (float): How many seconds each import may take.

    Returns:
        List[Finding]: What was found.
    """
    # In an order in which each imports only those before it.
    needs = [Need(*n) for n in (*VERSIONS[:1], *OTHERS, *VERSIONS[1:])]
    parts = ['dan_mm', 'the configs', 'the GPU', 'the cache', 'mmcv._ext']
    if is_installed('mmdet'):
        needs.append(Need(*MMDET))
        parts.append('dan_mm.detection')
    answers = ask([need.module for need in needs] + parts, timeout)
    torch = answers['torch'].get('version') or ''
    owners = find_owners()
    follow = [name for name in answers if answers[name].get('follows')]
    findings = [check_python()]
    for need in needs:
        own = owners.get(need.module, {})
        if need.module not in follow:
            findings.append(
                check_module(need, answers[need.module], own, torch))
        findings += check_owners(need, owners)
    for name in parts:
        result = answers[name]
        if name in follow:
            continue
        if name == 'mmcv._ext':
            findings.append(check_ops(result, torch))
        elif name == 'the GPU':
            findings.append(
                check_gpu(result, torch, find_nvidia_gpus(timeout)))
        elif 'error' in result:
            findings.append(
                Finding(
                    'problem', f'{name} fails: {result["error"]}',
                    'mend what is above, or, in a clone of dan_mm:\n'
                    f'{PIP} install -e .'))
        elif name == 'the cache':
            findings.append(check_cache(result['path']))
        else:
            findings.append(Finding('ok', f'{name}: {result["path"]}'))
    if follow:
        findings.append(
            Finding(
                'warning', f'not examined: {", ".join(follow)}; expected no '
                'problem in what they import', 'mend the problems above'))
    for module, purpose in OPTIONAL:
        if not is_installed(module):
            need = Need(*MMDET) if module == MMDET[0] else Need(module, module)
            findings.append(
                Finding('hint', f'{module} is missing, expected {purpose}',
                        install_alone(need, {})))
    return findings


def main(timeout: float = 120.) -> int:
    """Print what is found about this installation, and how to mend it.

    Args:
        timeout (float): See :func:`examine`. Defaults to 120.

    Returns:
        int: The exit status, 1 with problems and 0 without.
    """
    print('Examining this installation, up to a minute ...\n', flush=True)
    findings = examine(timeout)
    for level, found, mend in findings:
        # Neither paths nor commands are broken.
        lines = textwrap.wrap(
            found, 70, break_long_words=False, break_on_hyphens=False)
        if mend:
            lines += ('mend: ' + mend.replace('\n', '\n      ')).split('\n')
        print(f'{level:8} ' + '\n         '.join(lines))
    levels = [finding.level for finding in findings]
    print('\n' + ', '.join(f'{name}s: {levels.count(name)}'
                           for name in ('problem', 'warning', 'hint')))
    return int('problem' in levels)


if __name__ == '__main__':
    answer(*json.loads(sys.argv[1]))
