"""How `pip install --editable` finds the package: before the working directory.

The package's root is `src/`, so an editable install resolves `sightline` by an import hook. setuptools puts that hook
last, behind the search of `sys.path`, where a clone that lies in a folder called `sightline` counts as an empty namespace
package; here it comes first. Used by the build alone (`pyproject.toml`, `tool.setuptools.cmdclass`).
"""

from __future__ import annotations

from setuptools.command import editable_wheel


class EditableWheel(editable_wheel.editable_wheel):
    """setuptools' command, with the hook in front."""

    def run(self) -> None:
        template = editable_wheel._FINDER_TEMPLATE
        editable_wheel._FINDER_TEMPLATE = template.replace("sys.meta_path.append(", "sys.meta_path.insert(0, ")
        super().run()
