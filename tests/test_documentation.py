"""The examples of the docstrings and of the README run and print what they say."""

import doctest
import importlib
import pathlib

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"
FLAGS = doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("module", ["functional", "modules", "precision"])
def test_docstring_examples(module):
    failed, tried = doctest.testmod(importlib.import_module(f"numba_ctconv.{module}"), optionflags=FLAGS)
    assert tried
    assert not failed


def test_readme_examples():
    failed, tried = doctest.testfile(str(README), module_relative=False, optionflags=FLAGS, encoding="utf-8")
    assert tried
    assert not failed
