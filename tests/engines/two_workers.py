"""A folder served by two tensor-parallel workers: what the tests ask of it, as JSON on the last line.

`answers` to the tests' prompts, and `memories`: of each process that has rows in shared memory, which one.
"""

import json
import os
import sys
from pathlib import Path

from engines_common import by_vllm, prompts, served


def shared_memories():
    """The inode of our memory in each process that has it mapped."""
    found = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except OSError:
            continue
        found += sorted({line.split()[4] for line in lines if "memfd:retoken" in line})
    return found


if __name__ == "__main__":
    folder, tables, eager = sys.argv[1:]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    options = {"tensor_parallel_size": 2, "enforce_eager": eager == "eager"}
    with served(folder, {"tables": tables}, **options) as llm:
        print()
        print(json.dumps({"answers": by_vllm(llm, prompts()), "memories": shared_memories()}), flush=True)
