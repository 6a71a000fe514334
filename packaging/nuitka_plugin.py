"""A plug-in for Nuitka: our modules are compiled to C, other people's packages stay bytecode.

Compiling them takes 16 minutes in place of one, doubles the size and gains nothing measurable. Nuitka has no switch for
it. The standard library must not be answered for here: Nuitka decides that by itself, and aborts on a second opinion.
"""

from __future__ import annotations

from importlib.metadata import packages_distributions

from nuitka.importing import Importing
from nuitka.plugins.PluginBase import NuitkaPluginBase


class NuitkaPluginSoloBytecode(NuitkaPluginBase):
    """Keeps as bytecode whatever an installed distribution brought."""

    plugin_name = "solo-bytecode"
    plugin_desc = "keep third-party packages as bytecode"

    def __init__(self) -> None:
        self._third_party = set(packages_distributions()) - {"solo_fast"}
        # Where setuptools is installed, as here for building, Nuitka takes its distutils, without what that needs in
        # turn. User code shall find the standard library's.
        Importing._getSetuptoolsDistutilsPackageDir = lambda: None

    def decideCompilation(self, module_name):  # noqa: ANN001, ANN201, N802 - Nuitka's interface
        return "bytecode" if module_name.getTopLevelPackageName() in self._third_party else None
