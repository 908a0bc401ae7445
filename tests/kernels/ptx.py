"""Runs one block of a PTX kernel on NumPy, and watches its shared memory for races.

Gluon has no interpreter. Its PTX is short and nearly free of branches, so all threads step together: a register is an
array over the threads. What the tests need is here, nothing else; an instruction that is missing is named.
Between two barriers no byte of shared memory may be written by one warp and touched by another, and what a wgmma reads
must have been fenced, passed a barrier, and stay until the wait.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

BASE = 1024  # where shared memory starts
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
NAMED = {"f16": np.float16, "f32": np.float32}
COMPARE: dict[str, Callable] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "neu": lambda a, b: ~(a == b),
}
BINARY: dict[str, Callable] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "div": lambda a, b: a / b if a.dtype.kind == "f" else np.trunc(a.astype(float) / b).astype(a.dtype),
    "rem": np.fmod,
}
UNARY: dict[str, Callable] = {
    "sqrt": np.sqrt,
    "ex2": np.exp2,
    "rcp": lambda a: np.float32(1) / a,
    "not": lambda a: ~a,
    "neg": lambda a: -a,
}


def type_of(name: str) -> type:
    """The NumPy type of a PTX type: b32, s16, f32, ..."""
    return NAMED.get(name) or (SIGNED if name[0] == "s" else UNSIGNED)[width_of(name)]


def width_of(name: str) -> int:
    return 4 if name.endswith("x2") else int(name.lstrip("busf")) // 8


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values rounded to bfloat16, as uint32."""
    word = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((word + 0x7FFF + (word >> 16 & 1)) >> 16).astype(np.uint32) & 0xFFFF


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def parts_of(text: str) -> list[str]:
    """Operands, at the commas that no bracket holds."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)]


class Program:
    """The statements of an entry: (opcode's parts, operands, predicate), and where its labels are."""

    def __init__(self, ptx: str) -> None:
        entry = ptx[ptx.index(".entry") :]
        self.parameters = re.findall(r"\.param \.\w+ .*?(\w+_param_\d+)", entry[: entry.index(")")])
        start = entry.index("{", entry.index(")")) + 1
        text = re.sub(r"//[^\n]*|^\s*\.(?:loc|file|section|b8|b32|b64)\b[^\n]*$", "", entry[start:], flags=re.MULTILINE)
        text = text[: text.rindex("ret;") + 4]
        self.statements: list[tuple[list[str], list[str], str]] = []
        self.labels: dict[str, int] = {}
        scopes: list[dict[str, str]] = []
        local = 0
        for brace, label, statement in re.findall(r"\s*(?:([{}])|(\$?\w+):|([^;]+);)", text):
            if brace == "{":
                scopes.append({})
            elif brace:
                scopes.pop()
            elif label:
                self.labels[label] = len(self.statements)
            elif statement.startswith(".reg"):
                for name in re.sub(r"\.reg \.\w+", "", statement).split(",") if scopes else ():
                    scopes[-1][name.strip()] = f"%local{local}"
                    local += 1
            elif not statement.startswith("."):
                for name, own in (pair for scope in scopes for pair in scope.items()):
                    statement = re.sub(rf"(?<=[\s,\[{{@!]){name}(?=[\s,\]}};]|$)", own, statement)
                predicate, opcode, operands = re.fullmatch(r"(@!?%\w+)?\s*(\S+)\s*(.*)", statement, re.DOTALL).groups()
                self.statements.append((opcode.split("."), parts_of(operands), predicate or ""))


class Block:
    """One block: memory is the whole GPU's, as bytes that pointers index; shared starts as NaN."""

    def __init__(self, program: Program, arguments: list[int], memory: np.ndarray, block: int, blocks: int) -> None:
        self.program, self.memory = program, memory
        self.arguments = dict(zip(program.parameters, arguments, strict=False))
        self.special = {"%ctaid.x": block, "%nctaid.x": blocks}
        self.interval = 1  # barriers passed, and one
        self.pending: list[tuple[np.ndarray, int]] = []

    def run(self, threads: int, shared: int) -> None:
        self.threads = np.arange(threads)
        self.registers: dict[str, np.ndarray] = {"%tid.x": self.threads.astype(np.uint32)}
        self.shared = np.full(shared, 0xFF, np.uint8)
        self.written, self.writer = np.zeros(shared, int), np.zeros(shared, int)  # when last, by which warp
        self.read, self.readers = np.zeros(shared, int), np.zeros(shared, int)  # when last, by which warps: a bit each
        self.unfenced, self.raced = np.zeros(shared, bool), np.zeros(shared, bool)
        at = 0
        while True:
            opcode, operands, predicate = self.program.statements[at]
            at += 1
            active = np.ones(threads, bool)
            if predicate:
                active = self.registers[predicate.lstrip("@!")] ^ predicate.startswith("@!")
            if opcode[0] == "ret":
                return
            if opcode[0] == "bra":
                assert active.all() or not active.any(), "threads part ways"
                at = self.program.labels[operands[0]] if active.all() else at
                continue
            method = getattr(self, f"do_{opcode[0]}", None)
            if method is not None:
                method(opcode, operands, active)
            elif opcode[0] in BINARY:
                self.put(operands[0], BINARY[opcode[0]](*(self.get(o, opcode[-1]) for o in operands[1:])), active)
            elif opcode[0] in UNARY:
                self.put(operands[0], UNARY[opcode[0]](self.get(operands[1], opcode[-1])), active)
            else:
                raise NotImplementedError(".".join(opcode))

    def races(self) -> set[int]:
        """Kilobytes of shared memory that were raced for and read at any time."""
        return {int(where) // 1024 for where in np.flatnonzero(self.raced & (self.read > 0))}

    def get(self, operand: str, kind: str) -> np.ndarray:
        if operand in self.registers or kind == "pred":
            value = self.registers[operand]
        elif operand.startswith("0f"):
            value = np.full(len(self.threads), int(operand[2:], 16), np.uint32)
        else:
            number = BASE if operand == "global_smem" else self.special.get(operand)
            number = int(operand.rstrip("U"), 0) if number is None else number
            value = np.full(len(self.threads), number & (1 << 8 * width_of(kind)) - 1, UNSIGNED[width_of(kind)])
        if value.dtype == bool:
            return value
        unsigned = UNSIGNED[width_of(kind)]
        return (value if value.dtype == unsigned else value.astype(unsigned)).view(type_of(kind))

    def put(self, name: str, value: np.ndarray, active: np.ndarray) -> None:
        if value.dtype != bool:
            value = np.ascontiguousarray(value).view(UNSIGNED[value.dtype.itemsize])
        old = self.registers.get(name)
        self.registers[name] = (
            value if active.all() or old is None else np.where(active, value, old.astype(value.dtype))
        )

    def vector(self, operand: str) -> list[str]:
        return [name.strip() for name in operand.strip("{} \n").split(",")]

    def bytes_at(self, operand: str, count: int) -> np.ndarray:
        """For each thread the indices of `count` bytes from [register + offset] on."""
        register, offset = re.fullmatch(r"\[\s*(%\w+)\s*(?:\+\s*(-?\d+))?\s*\]", operand).groups()
        return (self.registers[register].astype(np.int64) + int(offset or 0))[:, None] + np.arange(count)

    def touch(self, where: np.ndarray, warps: np.ndarray, writes: bool) -> None:
        """Notes an access to shared memory, and a race with an earlier one since the last barrier."""
        where, warps = where.ravel(), np.broadcast_to(warps[:, None], where.shape).ravel()
        raced = (self.written[where] == self.interval) & (self.writer[where] != warps)
        if writes:
            raced |= (self.read[where] == self.interval) & (self.readers[where] & ~(1 << warps) != 0)
            self.written[where], self.writer[where], self.unfenced[where] = self.interval, warps, True
        else:
            self.readers[where[self.read[where] != self.interval]] = 0
            self.read[where] = self.interval
            np.bitwise_or.at(self.readers, where, 1 << warps)
        self.raced[where[raced]] = True

    def do_bar(self, *_: object) -> None:
        self.interval += 1

    def do_fence(self, *_: object) -> None:
        self.unfenced[:] = False

    def do_griddepcontrol(self, *_: object) -> None:
        pass

    def do_mov(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        kind = opcode[1]
        if kind == "pred":
            self.put(operands[0], np.full(len(self.threads), operands[1] != "0"), active)
        elif operands[0].startswith("{"):
            names = self.vector(operands[0])
            halves = self.get(operands[1], kind).view(UNSIGNED[width_of(kind) // len(names)]).reshape(-1, len(names))
            for index, name in enumerate(names):
                self.put(name, halves[:, index].copy(), active)
        elif operands[1].startswith("{"):
            names = self.vector(operands[1])
            halves = np.stack([self.get(name, f"b{8 * width_of(kind) // len(names)}") for name in names], 1)
            self.put(operands[0], halves.view(type_of(kind)).ravel(), active)
        else:
            self.put(operands[0], self.get(operands[1], kind), active)

    def do_ld(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        kind, names = opcode[-1], self.vector(operands[0])
        if opcode[1] == "param":
            value = self.arguments[operands[1].strip("[] ")]
            self.put(names[0], np.full(len(self.threads), value, UNSIGNED[width_of(kind)]), active)
            return
        where = self.bytes_at(operands[1], width_of(kind) * len(names))
        found = np.zeros(where.shape, np.uint8)
        if opcode[1] == "shared":
            self.touch(where[active] - BASE, self.threads[active] // 32, writes=False)
            found[active] = self.shared[where[active] - BASE]
        else:
            found[active] = self.memory[where[active]]
        words = found.view(UNSIGNED[width_of(kind)])
        for index, name in enumerate(names):
            self.put(name, words[:, index].copy(), active)

    def do_st(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        kind, names = opcode[-1], self.vector(operands[1])
        words = np.stack([self.get(name, f"b{8 * width_of(kind)}") for name in names], 1).view(np.uint8)
        where = self.bytes_at(operands[0], words.shape[1])
        if opcode[1] == "shared":
            self.touch(where[active] - BASE, self.threads[active] // 32, writes=True)
            self.shared[where[active] - BASE] = words[active]
        else:
            self.memory[where[active]] = words[active]

    def do_stmatrix(self, _: list[str], operands: list[str], active: np.ndarray) -> None:
        start, lane = self.bytes_at(operands[0], 4), self.threads % 32
        for index, name in enumerate(self.vector(operands[1])):
            where = start[self.threads - lane + 8 * index + lane // 4] + 4 * (lane % 4)[:, None] - BASE
            self.touch(where, self.threads // 32, writes=True)
            self.shared[where] = self.get(name, "b32").view(np.uint8).reshape(-1, 4)

    def do_shfl(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        lane, step = self.threads % 32, self.get(operands[2], "u32").astype(int)
        other = lane ^ step if opcode[2] == "bfly" else step
        self.put(operands[0].split("|")[0], self.get(operands[1], "b32")[self.threads - lane + other], active)

    def do_redux(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        assert opcode[2] == "max"
        self.put(operands[0], np.repeat(self.get(operands[1], opcode[-1]).reshape(-1, 32).max(1), 32), active)

    def do_shl(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        value, bits = self.get(operands[1], opcode[-1]), int(operands[2], 0)
        self.put(operands[0], value << value.dtype.type(bits), active)

    def do_shr(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        value, bits = self.get(operands[1], opcode[-1]), int(operands[2], 0)
        self.put(operands[0], value >> value.dtype.type(bits), active)

    def do_mul(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        kind = opcode[-1]
        a, b = (self.get(operand, "b32" if kind == "bf16x2" else kind) for operand in operands[1:3])
        if kind == "bf16x2":  # a product of two bfloat16 is a float32
            low, high = (
                bfloat16(widened(a & 0xFFFF) * widened(b & 0xFFFF)),
                bfloat16(widened(a >> 16) * widened(b >> 16)),
            )
            self.put(operands[0], low | high << 16, active)
        elif opcode[1] in ("wide", "hi"):
            wide = (SIGNED if kind[0] == "s" else UNSIGNED)[2 * width_of(kind)]
            product = a.astype(wide) * b.astype(wide)
            self.put(
                operands[0], product if opcode[1] == "wide" else (product >> 8 * width_of(kind)).astype(a.dtype), active
            )
        else:
            self.put(operands[0], a * b, active)

    def do_mad(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        kind = opcode[-1]
        if opcode[1] == "wide":
            wide = kind[0] + str(16 * width_of(kind))
            a, b = (self.get(operand, kind).astype(type_of(wide)) for operand in operands[1:3])
            self.put(operands[0], a * b + self.get(operands[3], wide), active)
        else:
            a, b, c = (self.get(operand, kind) for operand in operands[1:4])
            self.put(operands[0], a * b + c, active)

    def do_fma(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        if opcode[-1] == "bf16x2":
            self.put_pairs(operands, lambda a, b, c: a * b + c, active)
            return
        a, b, c = (self.get(operand, "f32").astype(np.float64) for operand in operands[1:4])
        self.put(operands[0], (a * b + c).astype(np.float32), active)

    def do_sub(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        if opcode[-1] == "bf16x2":
            self.put_pairs(operands, lambda a, b: a - b, active)
        else:
            self.put(operands[0], self.get(operands[1], opcode[-1]) - self.get(operands[2], opcode[-1]), active)

    def put_pairs(self, operands: list[str], function: Callable, active: np.ndarray) -> None:
        """Of words of two bfloat16 each; the result must be exact in float32, and is rounded once."""
        words = [self.get(operand, "b32") for operand in operands[1:]]
        low, high = (bfloat16(function(*(widened(word >> place & 0xFFFF) for word in words))) for place in (0, 16))
        self.put(operands[0], low | high << 16, active)

    def do_lop3(self, _: list[str], operands: list[str], active: np.ndarray) -> None:
        """Bit i of the table is the result where the operands' bits are those of i, the first the highest."""
        words, table = [self.get(operand, "b32") for operand in operands[1:4]], int(operands[4], 0)
        result = np.zeros_like(words[0])
        for index in range(8):
            if table >> index & 1:
                result |= np.bitwise_and.reduce([w if index >> 2 - i & 1 else ~w for i, w in enumerate(words)])
        self.put(operands[0], result, active)

    def do_abs(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        kind = opcode[-1]
        if kind.startswith("bf16"):
            bits = self.get(operands[1], f"b{8 * width_of(kind)}")
            self.put(operands[0], (bits.view(np.uint16) & np.uint16(0x7FFF)).view(bits.dtype), active)
        else:
            self.put(operands[0], np.abs(self.get(operands[1], kind)), active)

    def do_max(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        if opcode[-1] == "s16x2":
            a, b = (self.get(operand, "b32").view(np.int16) for operand in operands[1:3])
            self.put(operands[0], np.maximum(a, b).view(np.uint32), active)
            return
        a, b = (self.get(operand, opcode[-1]) for operand in operands[1:3])
        largest = np.fmax(a, b) if opcode[-1] == "f32" else np.maximum(a, b)
        self.put(operands[0], np.maximum(largest, 0) if "relu" in opcode else largest, active)

    def do_min(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        a, b = (self.get(operand, opcode[-1]) for operand in operands[1:3])
        self.put(operands[0], np.fmin(a, b) if opcode[-1] == "f32" else np.minimum(a, b), active)

    def do_setp(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        a, b = (self.get(operand, opcode[-1]) for operand in operands[1:3])
        self.put(operands[0], COMPARE[opcode[1]](a, b), active)

    def do_selp(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        a, b = (self.get(operand, opcode[-1]) for operand in operands[1:3])
        self.put(operands[0], np.where(self.registers[operands[3]], a, b), active)

    def do_bfe(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        start, count = int(operands[2]), int(operands[3])
        value = self.get(operands[1], "u32").astype(np.int64) >> start & (1 << count) - 1
        if opcode[-1] == "s32":
            value = np.where(value >> count - 1, value - (1 << count), value)
        self.put(operands[0], value.astype(np.int32), active)

    def do_prmt(self, _: list[str], operands: list[str], active: np.ndarray) -> None:
        a, b, selector = (self.get(operand, "u32") for operand in operands[1:4])
        eight, chosen = np.stack([a, b], 1).view(np.uint8), []
        for place in (0, 4, 8, 12):
            byte = eight[self.threads, selector >> place & 7]
            signs = (byte >> 7) * np.uint8(255)
            chosen.append(np.where(selector >> place & 8, signs, byte))
        self.put(operands[0], np.stack(chosen, 1).view(np.uint32).ravel(), active)

    def do_cvt(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        to, source = opcode[-2:]
        if to in ("f16x2", "bf16x2"):
            high, low = (self.get(operand, "f32") for operand in operands[1:3])
            bits = bfloat16 if to == "bf16x2" else lambda v: v.astype(np.float16).view(np.uint16).astype(np.uint32)
            value = bits(low) | bits(high) << 16
        elif to == "bf16":
            value = bfloat16(self.get(operands[1], "f32")).astype(np.uint16)
        elif source == "bf16":
            value = widened(self.get(operands[1], "b16"))
        elif source == "f16":
            value = self.get(operands[1], "f16").astype(np.float32)
        elif width_of(source) == 1:
            value = self.get(operands[1], "u16").astype(np.uint8).view(type_of(source)).astype(type_of(to))
        else:
            value = self.get(operands[1], source).astype(type_of(to))
        self.put(operands[0], value, active)

    def do_wgmma(self, opcode: list[str], operands: list[str], active: np.ndarray) -> None:
        if opcode[1] == "wait_group":
            for where, group in self.pending:
                self.touch_by_group(where, group)
            self.pending = []
        elif opcode[1] == "mma_async":
            columns = int(re.fullmatch(r"m64n(\d+)k16", opcode[4])[1])
            for group in range(len(self.threads) // 128):
                self.multiply(operands, columns, group)

    def touch_by_group(self, where: np.ndarray, group: int) -> None:
        """A wgmma's operand, which no warp may have written since the last barrier, its own neither."""
        if (self.written[where] == self.interval).any() or self.unfenced[where].any():
            self.raced[where] = True
        for warp in range(4 * group, 4 * group + 4):
            self.touch(where[:, None], np.full(len(where), warp), writes=False)

    def multiply(self, operands: list[str], columns: int, group: int) -> None:
        """m64nNk16 of the PTX manual: A along K, B along N, both in shared memory; sums [64, N] over 128 threads."""
        own = slice(128 * group, 128 * group + 128)
        (a_start, _, a_rows, a_width), (b_start, b_boxes, b_rows, b_width) = (
            self.descriptor(int(self.get(operand, "u64")[own][0])) for operand in operands[1:3]
        )
        assert [operands[6], operands[7]] == ["0", "1"]
        i, k, j = np.arange(64)[:, None], np.arange(16), np.arange(columns)
        a = a_start + i // 8 * a_rows + i % 8 * a_width + 2 * k
        k = k[:, None]
        b = b_start + j // (b_width // 2) * b_boxes + k // 8 * b_rows + k % 8 * b_width + j % (b_width // 2) * 2
        read = []
        for where, width in ((a, a_width), (b, b_width)):
            where = (where ^ (where >> 7 & width // 16 - 1) << 4) - BASE
            both = np.stack([where, where + 1], -1)
            self.touch_by_group(both.ravel(), group)
            self.pending.append((both.ravel(), group))
            read.append(self.shared[both].view(np.float16)[..., 0].astype(np.float64))
        product = (read[0] @ read[1]).astype(np.float32)
        lane, warp = np.arange(128) % 32, np.arange(128) // 32
        keeps = (
            self.get(operands[3], "pred")[own] if operands[3] in self.registers else np.full(128, operands[3] != "0")
        )
        for index, name in enumerate(self.vector(operands[0])):
            row, column = 16 * warp + lane // 4 + index // 2 % 2 * 8, index // 4 * 8 + lane % 4 * 2 + index % 2
            sums = self.get(name, "f32").copy() if name in self.registers else np.zeros(len(self.threads), np.float32)
            sums[own] = product[row, column] + np.where(keeps, sums[own], np.float32(0))
            self.put(name, sums, np.ones(len(self.threads), bool))

    @staticmethod
    def descriptor(bits: int) -> tuple[int, int, int, int]:
        """Start, leading and stride offsets in bytes, and the bytes of a swizzled row."""
        start, leading, stride = ((bits >> place & 0x3FFF) << 4 for place in (0, 16, 32))
        return start, leading, stride, {1: 128, 2: 64, 3: 32}[bits >> 62]
