"""Ships ``conf/`` inside the package: the rest of the metadata is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Copies the options into wheels as ``codetr/conf``; editable installs read the clone's."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("conf", Path(self.build_lib, "codetr", "conf"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConf})
