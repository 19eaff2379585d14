"""Everything is in pyproject.toml, but for this: C++ sources are compiled side by side."""

import os
from concurrent.futures import ThreadPoolExecutor

from setuptools import setup
from setuptools.command.build_ext import build_ext


class ParallelBuild(build_ext):
    def build_extensions(self):
        one_after_another = self.compiler.compile

        def side_by_side(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [name for names in pool.map(lambda source: one_after_another([source], **options), sources) for name in names]

        self.compiler.compile = side_by_side
        super().build_extensions()


setup(cmdclass={"build_ext": ParallelBuild})
