"""Served models are compared in this process; without vLLM these tests are skipped."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
NEED_IT = [path.name for path in Path(__file__).parent.glob("test_vllm_*.py")]
collect_ignore = [] if find_spec("vllm") else NEED_IT
