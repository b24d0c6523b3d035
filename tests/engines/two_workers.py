"""A folder served by two tensor-parallel workers: answers to the tests' prompts as JSON, on the last line."""

import json
import os
import sys

from engines_common import by_vllm, prompts, served

if __name__ == "__main__":
    folder, tables = sys.argv[1:]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    with served(folder, {"tables": tables}, tensor_parallel_size=2) as llm:
        print()
        print(json.dumps(by_vllm(llm, prompts())), flush=True)
