# Copyright (c) dan_mm contributors. All rights reserved.
"""Processes that start at once: copies of one that has imported everything
and run nothing."""
import multiprocessing
import os
import runpy
import sys
import tempfile

CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['dan_mm.apis', 'gradio', 'mmpretrain.apis'])


def run(path, name, args, log, env):
    os.environ.update(env)
    tempfile.tempdir = None  # That of the environment
    file = open(log, 'w', 1)
    for stream in sys.stdout, sys.stderr:
        os.dup2(file.fileno(), stream.fileno())
    sys.exit(runpy.run_path(path)[name](*args))


def start(function, *args, log=os.devnull, **env):
    """Start a function of a test module in such a process; what it prints
    goes to a file."""
    path = function.__code__.co_filename
    process = CONTEXT.Process(
        target=run, args=(path, function.__name__, args, str(log), env))
    process.start()
    return process


def wait(process, seconds=120):
    """Wait for the end of a process, and get its exit status."""
    process.join(seconds)
    assert process.exitcode is not None, 'it hangs'
    return process.exitcode
