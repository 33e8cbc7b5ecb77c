"""What the optimised HLO text of a compiled program says: launches, bytes, products, sorts, collectives.

Per device and for one call. A loop whose trip count the compiler knows counts so often, any other (the steps
of a dispatch) once. Of a conditional the first branch counts, which in this product is the one that does
least (no feature is dead); `sorts` and `scatter_loops` look into all branches.

    launches       instructions of the schedule that do something, after fusion; of a GPU about its kernels
    bytes          what they read and write; of a sliced, gathered or updated array what is touched
    flops          of matrix products and convolutions, nothing else, by how exact they are: "bf16", "f32"
                   (float32 asked for) or "default" (float32 operands multiplied as the device likes best)
    sorts          sort instructions, and calls of TopK and CUB
    scatter_loops  loops that XLA made of a scatter
    collectives    kind -> [how many, bytes of their results]
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "token": 0, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b(pred|token|bf16|[a-z]\d+(?:e\dm\d\w*)?)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_FREE = {  # no work of their own
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"),
    *("replica-id", "iota", "opt-barrier", "add-dependency"),
}
_BOTH = (
    "all-gather-start",
    "reduce-scatter-start",
    "collective-permute-start",
    "copy-start",
)  # operand and result are in their shape
_SORTS = re.compile(r"topk|sort|\bcub", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Counts:
    """The numbers of the module's docstring."""

    launches: int
    bytes: float
    flops: dict[str, float]
    sorts: int
    scatter_loops: int
    collectives: dict[str, list[float]]


class Instruction(NamedTuple):
    """One line: shape, opcode, names of its operands, what follows them, whether it is the root."""

    shape: str
    op: str
    operands: list[str]
    rest: str
    is_root: bool


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """({computation: {instruction: ...}}, name of the entry). Raises ValueError if there is no entry."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            depth, end = 1, 0
            for end, char in enumerate(found[5]):  # noqa: B007
                depth += (char == "(") - (char == ")")
                if not depth:
                    break
            inside, rest = found[5][:end], found[5][end + 1 :]
            operands = re.findall(r"%([\w.\-]+)", inside)
            current[found[2]] = Instruction(found[3], found[4], operands, rest, bool(found[1]))
    if not entry:
        raise ValueError("the text has no ENTRY computation: expected optimised HLO")
    return computations, entry


def count(text: str) -> Counts:
    """The counts of one program's text."""
    computations, entry = parse(text)
    launches, moved = 0, 0.0
    flops: collections.Counter[str] = collections.Counter()
    sent: dict[str, list[float]] = {}
    for times, body, name in _scheduled(computations, entry):
        instruction = body[name]
        launches += times
        moved += times * _moved(computations, body, instruction)
        for kind, n in _flops(computations, body, instruction).items():
            flops[kind] += times * n
        kind = instruction.op.removesuffix("-start")
        if kind in COLLECTIVES:
            row = sent.setdefault(kind, [0, 0.0])
            row[0] += times
            row[1] += times * _result_bytes(body, instruction)
    everything = [(op, rest) for body in computations.values() for _, op, _, rest, _ in body.values()]
    return Counts(
        launches=launches,
        bytes=moved,
        flops=dict(flops),
        sorts=sum(op == "sort" or bool(_SORTS.search(_target(rest))) for op, rest in everything),
        scatter_loops=sum(op == "while" and "scatter" in _source(rest) for op, rest in everything),
        collectives=sent,
    )


def _scheduled(computations: dict[str, Computation], entry: str) -> Iterator[tuple[int, Computation, str]]:
    """(how often, computation, name) of every instruction that is launched."""

    def walk(of: str, times: int) -> Iterator[tuple[int, Computation, str]]:
        body = computations[of]
        for name, (_, op, _, rest, _) in body.items():
            if op == "while":
                known = re.search(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)', rest)
                yield from walk(_called(rest, "body"), times * int(known[1] if known else 1))
            elif op == "conditional":
                branches = re.search(r"branch_computations=\{%([\w.\-]+)", rest)
                yield from walk(branches[1] if branches else _called(rest, "false_computation"), times)
            elif op == "call":
                yield from walk(_called(rest, "to_apply"), times)
            elif op == "async-start":
                yield from walk(_called(rest, "calls"), times)
            elif op not in _FREE and not op.endswith(("-done", "-update")):
                yield times, body, name

    yield from walk(entry, 1)


def _called(rest: str, what: str) -> str:
    found = re.search(rf"\b{what}=%([\w.\-]+)", rest)
    assert found, f"no {what} in {rest[:200]}"
    return found[1]


def _source(rest: str) -> str:
    """The last part of the name of what an instruction was made from."""
    found = re.search(r'op_name="([^"]*)"', rest)
    return found[1].rsplit("/", 1)[-1] if found else ""


def _target(rest: str) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', rest)
    return found[1] if found else ""


@functools.cache
def _bytes(shape: str, everywhere: bool = False) -> float:
    """Of all arrays of a shape, which may be a tuple; a TPU core's fast memory, S(1), is left out."""
    total = 0.0
    for found in _SHAPE.finditer(shape):
        layout = re.match(r"\{[^}]*\}", shape[found.end() :])
        if layout and "S(1)" in layout[0] and not everywhere:
            continue
        bits = _BITS.get(found[1]) or int((re.search(r"\d+", found[1]) or ["0"])[0])
        total += bits / 8 * _size(found[2])
    return total


def _size(dims: str) -> int:
    return math.prod(int(d) for d in dims.split(",") if d)


def _result_bytes(body: Computation, instruction: Instruction) -> float:
    """Of the result; what is started also has its operands in its shape, but for an all-reduce."""
    of_all = _bytes(instruction.shape, everywhere=True)
    if instruction.op in (*_BOTH, "slice-start"):
        of_all -= sum(
            _bytes(body[name].shape, everywhere=True) for name in instruction.operands if name in body
        )
    return of_all


def _moved(computations: dict[str, Computation], body: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction reads and writes."""
    shape, op, operands, rest, _ = instruction
    if op == "fusion":
        return _moved_by_fusion(computations[_called(rest, "calls")], shape)
    if op in ("dynamic-slice", "slice", "gather"):
        return 2 * _bytes(shape)
    if op == "slice-start":  # into fast memory; operand and result are in its shape
        return _result_bytes(body, instruction)
    if op in _BOTH:
        return _bytes(shape)
    if op == "dynamic-update-slice":
        return 2 * _bytes(body[operands[1]].shape)
    return _bytes(shape) + sum(_bytes(body[name].shape) for name in operands if name in body)


def _moved_by_fusion(body: Computation, shape: str) -> float:
    """Parameters that are sliced or gathered and outputs that are updated count what is touched."""
    users = collections.defaultdict(list)
    for name, instruction in body.items():
        for place, operand in enumerate(instruction.operands):
            users[operand].append((name, instruction.op, place))
    total, in_place = 0.0, 0.0
    for name, (own, op, operands, _, _) in body.items():
        if op == "parameter":
            reads, whole = 0.0, False
            for user, user_op, place in users[name]:
                if user_op in ("dynamic-slice", "slice", "gather") and place == 0:
                    reads += _bytes(body[user].shape)
                elif not (user_op in ("dynamic-update-slice", "scatter") and place == 0):
                    whole = True
            total += _bytes(own) if whole else min(reads, _bytes(own))
        elif op in ("dynamic-update-slice", "scatter"):  # a scattered row is read, added to and written
            update = operands[1] if op == "dynamic-update-slice" else operands[-1]
            touched = _bytes(body[update].shape) * (2 if op == "scatter" else 1) if update in body else 0
            in_place += max(0.0, _bytes(own) - touched)
    return total + max(0.0, _bytes(shape) - in_place)


def _flops(
    computations: dict[str, Computation], body: Computation, instruction: Instruction
) -> dict[str, float]:
    """Operations of the products in an instruction, and in a fusion, by type of their operands."""
    _, op, operands, rest, _ = instruction
    if op == "fusion":
        inner = computations[_called(rest, "calls")]
        found: collections.Counter[str] = collections.Counter()
        for each in inner.values():
            found.update(_flops(computations, inner, each))
        return dict(found)
    target = _target(rest) if op == "custom-call" else ""
    if op not in ("dot", "convolution") and not re.search(r"matmul|gemm|conv|dot", target, re.IGNORECASE):
        return {}
    shapes = [_SHAPE.findall(part) for part in (instruction.shape, *(body[o].shape for o in operands[:2]))]
    if any(not each for each in shapes) or len(shapes) < 3:
        return {}
    (_, out), (kind, left), (_, right) = (each[0] for each in shapes)
    exact = "f32" if "highest" in rest.lower() else "default"
    return {"bf16" if kind in ("bf16", "f16") else exact: _of_product(rest, target, out, left, right)}


def _of_product(rest: str, target: str, out: str, left: str, right: str) -> float:
    """2 * multiplications of a product out = left x right, a matrix product or a convolution."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    if labels is None:
        contracted = re.search(r'lhs_contracting_dim(?:ension)?s"?[:=][\[{]"?([\d",]*)', rest)
        dims = [int(d) for d in left.split(",") if d]
        numbers = [int(d) for d in re.findall(r"\d+", contracted[1])] if contracted else []
        return 2.0 * _size(out) * math.prod(dims[i] for i in numbers)
    kernel = right
    if "Filter" in target:  # the gradient of a kernel has its shape, and works like the convolution itself
        out, kernel = right, out
    elif "Input" in target:
        out = left
    sizes = dict(zip(labels[2], (int(d) for d in kernel.split(",") if d), strict=False))
    return 2.0 * _size(out) * _size(kernel) / max(sizes.get("o", 1), 1)
