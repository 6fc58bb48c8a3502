"""What a process frees goes back to the system when it says so, and large blocks do at once where they are apart."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import environment, make_facts, make_world, write_facts

from malmen_cli.errors import ExitCode
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="looks into glibc's heap"
)


# In a process of its own: a heap that other tests have left gaps in takes blocks of any size into these. The first
# block brings what torch itself takes when it is used.
IN_FRESH_MEMORY = """
import sys
from pathlib import Path
import torch
from malmen_cli.language_models.host_memory import BLOCK, give_back_freed, large_blocks_apart

LARGE = 4 * BLOCK

def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

def ones(count):
    return [torch.ones(LARGE // 4) for _ in range(count)]

with large_blocks_apart():
    ones(1)
give_back_freed()
"""

APART = """
with large_blocks_apart():
    before = resident()
    held = ones(16)
    assert resident() - before > 15 * LARGE
    del held[::2]  # what is freed lies between what is not
    assert resident() - before < 9 * LARGE
"""

TOGETHER = """
before = resident()
held = ones(16)
del held[::2]
assert resident() - before > 15 * LARGE
give_back_freed()
assert resident() - before < 9 * LARGE
"""


@pytest.mark.parametrize("huge", ["0", "1"])
@pytest.mark.parametrize("code", [APART, TOGETHER])
def test_large_blocks_go_back_when_they_are_freed_and_else_when_they_are_given_back(code: str, huge: str) -> None:
    """Those taken apart leave no gaps; others do, until then. In huge pages too."""
    command = [sys.executable, "-c", IN_FRESH_MEMORY + code]
    done = subprocess.run(command, env=environment() | {"THP_MEM_ALLOC_ENABLE": huge}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not HUGE.exists(), reason="this kernel has no transparent huge pages")
@pytest.mark.parametrize("verb", ["apply", "plan", "train", "eval"])
def test_verbs_have_asked_for_huge_pages_when_torch_first_takes_memory(tmp_path: Path, verb: str) -> None:
    world = make_world(tmp_path)
    world.apply(*make_facts(2))
    write_facts(tmp_path / "facts.jsonl", make_facts(3, start=2))
    words = [verb, "facts.jsonl", *(["--steps", "1"] if verb == "train" else [])]
    code = f"""
import re, sys
sys.argv = {["malmen", *words]}
from malmen_cli.__main__ import main
try: main()
except SystemExit as ended: assert ended.code in (0, {ExitCode.FACTS_FAILED_CHECK:d})
import torch
block = torch.ones(1 << 22)
within = None
for line in open("/proc/self/smaps"):
    if span := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
        within = int(span[1], 16) <= block.data_ptr() + (1 << 22) < int(span[2], 16)
    elif within and line.startswith("VmFlags"):
        print("huge pages:", "hg" in line.split())
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("huge pages: True\n"), done.stderr


@pytest.mark.parametrize(("dtype", "tokens"), [(torch.float32, 512), (torch.bfloat16, 1024)])
def test_a_batch_takes_as_much_memory_in_any_dtype(shared_dir: Path, dtype: torch.dtype, tokens: int) -> None:
    model = LanguageModel(shared_dir / "models" / "cf-gpt2", dtype=dtype)
    texts = [Tokens(tuple(range(8)), (1,))] * 1000
    sizes = [batch.input_ids.numel() for batch, _ in model.passes(texts, None)]
    assert sorted(sizes)[1] == max(sizes) == tokens
