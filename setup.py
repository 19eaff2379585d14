"""Everything is in pyproject.toml, but for the C++: a plain C interface that Python calls by ctypes. Where it cannot be built, torch takes its place."""

import os
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class ParallelBuild(build_ext):
    """Compiles sources side by side."""

    def build_extensions(self):
        one_after_another = self.compiler.compile

        def side_by_side(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [name for names in pool.map(lambda source: one_after_another([source], **options), sources) for name in names]

        self.compiler.compile = side_by_side
        super().build_extensions()


def library(folder, *flags):
    """All sources of a folder as one library."""
    return Extension(
        f"sedaq.{folder.replace('/', '.')}.native",
        sorted(glob(f"{folder}/*.cpp")),
        depends=sorted(glob(f"{folder}/*.h")),
        extra_compile_args=["-std=c++17", "-O3", "-g0", "-fopenmp", "-fvisibility-inlines-hidden", "-Wno-psabi", *flags],
        extra_link_args=["-fopenmp"],
        language="c++",
        optional=True,
    )


setup(cmdclass={"build_ext": ParallelBuild}, ext_modules=[library("kernels/csrc"), library("aq/csrc", "-ffp-contract=off")])
