"""Integer dot products: the only code that differs between processors.

`dot_small` and `dot_signed` choose the instruction from the features of the target that code is generated for (an
instruction it lacks would abort the process).
"""

# pyright: reportUnknownMemberType=false, reportAttributeAccessIssue=false, reportArgumentType=false
from __future__ import annotations

from llvmlite import ir

from lapinfer.kernels.codegen import I8, I16, I32, call_if, const, features, i8x64, i32x16, join, part


def _pairs(context, feature: str, builder, kind: str, width: int, a, b, result_element, result_per: int):
    """Apply an x86 multiply-add-pairs intrinsic of `width` lanes over longer vectors."""
    n = a.type.count
    result = ir.VectorType(result_element, width // result_per)
    return join(
        builder,
        [
            call_if(context, feature, builder, kind, result, part(builder, a, i, width), part(builder, b, i, width))
            for i in range(0, n, width)
        ],
    )


def _byte_pairs(context, builder, unsigned, signed):
    """pmaddubsw: neighbouring products of u8 and s8 added to i16 (saturating: callers stay below)."""
    if "avx512bw" in features(context):
        return _pairs(context, "avx512bw", builder, "llvm.x86.avx512.pmaddubs.w.512", 64, unsigned, signed, I16, 2)
    return _pairs(context, "avx2", builder, "llvm.x86.avx2.pmadd.ub.sw", 32, unsigned, signed, I16, 2)


def _word_pairs(context, builder, a, b):
    """pmaddwd: neighbouring products of i16 added to i32."""
    have = features(context)
    if "avx512bw" in have:
        return _pairs(context, "avx512bw", builder, "llvm.x86.avx512.pmaddw.d.512", 32, a, b, I32, 2)
    if "avx2" in have:
        return _pairs(context, "avx2", builder, "llvm.x86.avx2.pmadd.wd", 16, a, b, I32, 2)
    return _pairs(context, "sse2", builder, "llvm.x86.sse2.pmadd.wd", 8, a, b, I32, 2)


def _vnni(context, builder, acc, unsigned, signed):
    """vpdpbusd on 512 bits or, with AVX-VNNI, on two halves."""
    if "avx512vnni" in features(context):
        return call_if(context, "avx512vnni", builder, "llvm.x86.avx512.vpdpbusd.512", acc.type, acc, unsigned, signed)
    halves = []
    for i in (0, 1):
        a, u, s = part(builder, acc, 8 * i, 8), part(builder, unsigned, 32 * i, 32), part(builder, signed, 32 * i, 32)
        halves.append(call_if(context, "avxvnni", builder, "llvm.x86.avx512.vpdpbusd.256", a.type, a, u, s))
    return join(builder, halves)


def _has_vnni(context) -> bool:
    have = features(context)
    return "avx512vnni" in have or "avxvnni" in have


def _signed_generic(context, builder, acc, a, b):
    """The dot product of signed bytes by 16-bit (x86) or 32-bit arithmetic."""
    element, shift = (I16, 8) if "x86" in features(context) else (I32, 24)
    lanes = ir.VectorType(element, 512 // element.width)

    def byte(vector, index):
        wide = builder.bitcast(vector, lanes)
        if shift - 8 * index:
            wide = builder.shl(wide, const(lanes, shift - 8 * index))
        return builder.ashr(wide, const(lanes, shift))

    for i in range(element.width // 8):
        if element is I16:
            acc = builder.add(acc, _word_pairs(context, builder, byte(a, i), byte(b, i)))
        else:
            acc = builder.add(acc, builder.mul(byte(a, i), byte(b, i)))
    return acc


def _neon(context, builder, acc, a, b):
    quarters = []
    for i in range(4):
        q, x, y = part(builder, acc, 4 * i, 4), part(builder, a, 16 * i, 16), part(builder, b, 16 * i, 16)
        quarters.append(call_if(context, "dotprod", builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", q.type, q, x, y))
    return join(builder, quarters)


def dot_small(context, builder, small, signed):
    """Σ over eight pairs of i8x64 of their 4-byte dot products; `small` holds 0 … 15 -> i32x16."""
    acc = const(i32x16.llvm, 0)
    have = features(context)
    if not _has_vnni(context) and "avx2" in have:
        # 8 · 2 · 15 · 127 = 30,480 fits 16 bits: widen once a group.
        total = _byte_pairs(context, builder, small[0], signed[0])
        for w, x in zip(small[1:], signed[1:], strict=True):
            total = builder.add(total, _byte_pairs(context, builder, w, x))
        return _word_pairs(context, builder, total, const(ir.VectorType(I16, 32), 1))
    for w, x in zip(small, signed, strict=True):
        if _has_vnni(context):
            acc = _vnni(context, builder, acc, w, x)
        elif "dotprod" in have:
            acc = _neon(context, builder, acc, w, x)
        else:
            acc = _signed_generic(context, builder, acc, w, x)
    return acc


def dot_signed(context, builder, weights, signed, bias):
    """Σ over pairs of i8x64 of the 4-byte dot products of signed bytes (both −127 … 127) -> i32x16.

    `bias` is −128 · Σ signed, for instructions that want one operand unsigned and so get w + 128.
    """
    have = features(context)
    acc = bias if _has_vnni(context) else const(i32x16.llvm, 0)
    for w, x in zip(weights, signed, strict=True):
        if _has_vnni(context):
            acc = _vnni(context, builder, acc, builder.xor(w, const(i8x64.llvm, 0x80)), x)
        elif "avx2" in have:
            negative = builder.icmp_signed("<", w, const(i8x64.llvm, 0))
            magnitude = builder.select(negative, builder.neg(w), w)
            x = builder.select(negative, builder.neg(x), x)  # 2 · 127 · 127 fits 16 bits
            pairs = _byte_pairs(context, builder, magnitude, x)
            acc = builder.add(acc, _word_pairs(context, builder, pairs, const(ir.VectorType(I16, 32), 1)))
        elif "dotprod" in have:
            acc = _neon(context, builder, acc, w, x)
        else:
            acc = _signed_generic(context, builder, acc, w, x)
    return acc


def looked_up(context, builder, nibbles, table):
    """What a table of 16 whole numbers −127 … 127 has at nibbles: i8x64 of 0 … 15 -> i8x64."""
    have = features(context)
    if have & {"avx512bw", "avx2", "aarch64"}:
        feature, width, name = (
            ("avx512bw", 64, "llvm.x86.avx512.pshuf.b.512") if "avx512bw" in have
            else ("avx2", 32, "llvm.x86.avx2.pshuf.b") if "avx2" in have
            else ("aarch64", 16, "llvm.aarch64.neon.tbl1.v16i8")
        )  # fmt: skip
        kind = ir.VectorType(I8, width)
        constant = ir.Constant(kind, [*table] * (width // 16))
        parts = (part(builder, nibbles, i, width) for i in range(0, 64, width))
        return join(builder, [call_if(context, feature, builder, name, kind, constant, p) for p in parts])
    vector = i8x64.llvm
    value = const(vector, table[0])
    for code in range(1, 16):
        is_it = builder.icmp_unsigned("==", nibbles, const(vector, code))
        value = builder.select(is_it, const(vector, table[code]), value)
    return value
