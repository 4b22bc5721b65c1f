"""Build entry point: everything is declared in pyproject.toml; the native library's build step joins here."""

from setuptools import setup

setup()
