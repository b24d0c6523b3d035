"""Served models are compared in this process; without vLLM these tests are skipped."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
NEED_IT = ["test_vllm_families.py", "test_vllm_engine.py", "test_vllm_server.py"]
collect_ignore = [] if find_spec("vllm") else NEED_IT
