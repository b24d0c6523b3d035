"""What numba compiled is taken again from the same sources, and from no others."""

import subprocess
import sys
from pathlib import Path

CALLED = "from retoken.ops.compiled import compiled\n\n\n@compiled\ndef number(x):\n    return x + {}\n"
CALLING = """import sys
from retoken.ops import compiled as made
made.sources = lambda: sys.argv[1]
import called

@made.compiled
def twice(x):
    return 2 * called.number(x)

print(twice(1), sum(twice.stats.cache_hits.values()))
"""


def _run(folder: Path, added: int, digest: str) -> list[str]:
    (folder / "called.py").write_text(CALLED.format(added))
    command = [sys.executable, "calling.py", digest]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()


def test_code_of_other_sources_is_compiled_anew(tmp_path):
    (tmp_path / "calling.py").write_text(CALLING)
    assert _run(tmp_path, 1, "first") == ["4", "0"]
    assert _run(tmp_path, 1, "first") == ["4", "1"]
    assert _run(tmp_path, 5, "second") == ["12", "0"]
