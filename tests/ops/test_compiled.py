"""What numba compiled is taken again from the same sources, and from no others."""

import subprocess
import sys
from pathlib import Path

from retoken.ops import compiled

CALLED = "from made import compiled\n\n\n@compiled\ndef number(x):\n    return x + {}\n"
CALLING = """import importlib.util, sys
spec = importlib.util.spec_from_file_location("made", sys.argv[2])
made = sys.modules["made"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)
made.sources = lambda: sys.argv[1]
import called

@made.compiled
def twice(x):
    return 2 * called.number(x)

print(twice(1), sum(twice.stats.cache_hits.values()))
"""


def _run(folder: Path, added: int, digest: str) -> list[str]:
    (folder / "called.py").write_text(CALLED.format(added))
    # By its file: importing the package takes seconds. Without bytecode, whose own check is blind to a file
    # of the same size that is written again within a second.
    command = [sys.executable, "-B", "calling.py", digest, compiled.__file__]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()


def test_code_of_other_sources_is_compiled_anew(tmp_path):
    (tmp_path / "calling.py").write_text(CALLING)
    assert _run(tmp_path, 1, "first") == ["4", "0"]
    assert _run(tmp_path, 1, "first") == ["4", "1"]
    assert _run(tmp_path, 5, "second") == ["12", "0"]
