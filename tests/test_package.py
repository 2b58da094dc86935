"""The package as a whole: found from anywhere, whole without the repository, nothing in it that is not for its users."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path: Path) -> None:
    """As beside a clone, which is no package itself but is called as the package is."""
    (tmp_path / "sightline").mkdir()
    command = [sys.executable, "-c", "import sightline; sightline.attach"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
