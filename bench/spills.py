"""Count vector registers that the hot loops keep on the stack: `python bench/spills.py _core.so`.

A hot loop is an innermost loop with multiplications: of a GEMM, of a deformable convolution's
samples, or of a depthwise kernel's whole vectors. Reads objdump's disassembly of a library or an
object file, of x86-64 or, where a cross objdump is installed, of AArch64; exits with 1 where such a
loop touches the stack with a vector register. Two kinds of loop do so by construction, and are
listed, not judged: masked tails of sse2's and scalar's depthwise kernels, where a partial vector
goes through memory, and avx2's for narrow planes, whose weights and masks are operands in memory,
because nine vectors of input leave no registers for them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

Instruction = tuple[int, str]

FUNCTION = re.compile(r"^[0-9a-f]+ <(ck_(?:gemm|dwconv|deform)\w+)>:")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(.*)$")
JUMP = re.compile(r"^(?:j\w+|b(?:\.\w+)?|[ct]bn?z)\s+(?:\S+,\s*)*([0-9a-f]+)\s<")
BY_CONSTRUCTION = re.compile(r"ck_dwconv\w+_(sse2|scalar)$|ck_dwconv3x3_narrow_\w+_avx2$")
MULTIPLY = re.compile(r"^(v?(fn?m(add|sub)\w*|mul[ps][sd])|fml[as]|fmul)\s")
ALWAYS = re.compile(r"^(jmp|b|br|ret)[q\s]|^ret$")  # what never goes on at the next
SPILL = re.compile(r"%[xyz]mm.*\(%rsp|\(%rsp.*%[xyz]mm|^(ld|st)u?[rp]\s+[qd]\d.*\[sp")
EM_AARCH64 = 183  # e_machine of an ELF header


def objdump(library: str) -> str:
    """The disassembler for a file's machine."""
    with open(library, "rb") as file:
        machine = int.from_bytes(file.read(20)[18:], "little")
    cross = "aarch64-linux-gnu-objdump"
    return cross if machine == EM_AARCH64 and shutil.which(cross) else "objdump"


def functions(library: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Each kernel's name and instructions."""
    command = [objdump(library), "-d", "--no-show-raw-insn", library]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    name, body = "", []
    for line in text.splitlines():
        if (start := re.match(r"^[0-9a-f]+ <(.*)>:", line)) is not None:
            if name:
                yield name, body
            name, body = (start[1] if FUNCTION.match(line) else ""), []
        elif name and (found := INSTRUCTION.match(line)) is not None:
            body.append((int(found[1], 16), found[2]))
    if name:
        yield name, body


def successors(body: list[Instruction]) -> list[list[int]]:
    """Where each instruction goes on: at the next, at a jump's target, or nowhere."""
    index = {address: i for i, (address, _) in enumerate(body)}
    after = []
    for i, (_, text) in enumerate(body):
        jump = JUMP.match(text)
        target = index.get(int(jump[1], 16)) if jump else None
        falls_through = not ALWAYS.match(text) and i + 1 < len(body)
        after.append(([i + 1] if falls_through else []) + ([] if target is None else [target]))
    return after


def back_edges(after: list[list[int]]) -> Iterator[tuple[int, int]]:
    """A loop's first and last instruction: where a depth-first walk returns to its own path."""
    seen, on_path = {0}, {0}
    path = [(0, iter(after[0]))]
    while path:
        i, ways = path[-1]
        to = next(ways, None)
        if to is None:
            on_path.remove(i)
            path.pop()
        elif to in on_path:
            yield to, i
        elif to not in seen:
            seen.add(to)
            on_path.add(to)
            path.append((to, iter(after[to])))


def loop_of(before: list[list[int]], first: int, last: int) -> set[int]:
    """The instructions from which the last is reached without the first in between."""
    loop, ways = {first}, [last]
    while ways:
        i = ways.pop()
        if i not in loop:
            loop.add(i)
            ways += before[i]
    return loop


def innermost_loops(body: list[Instruction]) -> Iterator[list[str]]:
    """The instructions of each natural loop that has no other inside, as they lie."""
    after = successors(body)
    before: list[list[int]] = [[] for _ in body]
    for i, targets in enumerate(after):
        for target in targets:
            before[target].append(i)
    loops = [loop_of(before, first, last) for first, last in back_edges(after)]
    for loop in loops:
        if not any(other < loop for other in loops):
            yield [body[i][1] for i in sorted(loop)]


def main(library: str) -> int:
    failed = False
    for name, body in functions(library):
        for loop in innermost_loops(body):
            multiplies = sum(MULTIPLY.match(text) is not None for text in loop)
            spills = sum(SPILL.search(text) is not None for text in loop)
            if not multiplies or not spills:
                continue
            print(f"{name}: {spills} vector accesses to the stack, {multiplies} multiplications")
            failed = failed or not BY_CONSTRUCTION.match(name)
    print("vectors stay in registers" if not failed else "vectors spill in a hot loop")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
