"""What kernels share with other threads and ask the system for: atomic words, time, and functions by their address."""

# pyright: reportUnknownMemberType=false, reportAttributeAccessIssue=false, reportArgumentType=false
from __future__ import annotations

from llvmlite import ir
from numba.core import types

from lapinfer.kernels.cache import jit
from lapinfer.kernels.codegen import I32, I64, VOID, call, features, intrinsic, pointer


@intrinsic
def atomic_load(typingctx, address):
    return types.int64(types.int64), lambda context, b, sig, a: b.load_atomic(pointer(b, a[0], I64), "acquire", 8)


@intrinsic
def atomic_store(typingctx, address, value):
    def generate(context, b, sig, args):
        b.store_atomic(args[1], pointer(b, args[0], I64), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def atomic_add(typingctx, address, value):
    """Add, and return what was there before."""
    return types.int64(types.int64, types.int64), lambda context, b, sig, a: b.atomic_rmw(
        "add", pointer(b, a[0], I64), a[1], "acq_rel"
    )


@intrinsic
def compare_and_swap(typingctx, address, expected, value):
    """Whether the int64 at `address` was `expected`, and so is now `value`."""

    def generate(context, b, sig, args):
        pair = b.cmpxchg(pointer(b, args[0], I64), args[1], args[2], "acq_rel", "acquire")
        return b.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def pause(typingctx):
    """Tell the core that this is a spin loop."""

    def generate(context, b, sig, args):
        have = features(context)
        if "x86" in have:
            call(b, "llvm.x86.sse2.pause", VOID)
        elif "aarch64" in have:
            call(b, "llvm.aarch64.hint", VOID, I32(1))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def clock(typingctx):
    """A steady tick counter (x86: the time-stamp counter; elsewhere LLVM's steady counter)."""

    def generate(context, b, sig, args):
        name = "llvm.readcyclecounter" if "x86" in features(context) else "llvm.readsteadycounter"
        return call(b, name, I64)

    return types.int64(), generate


@intrinsic
def call_kernel(typingctx, function, op, step, chunk, thread):
    """Call the kernel at address `function` (see kernels/__init__.py for its signature)."""

    def generate(context, b, sig, args):
        kind = ir.FunctionType(VOID, [I64] * 4)
        b.call(b.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64, i64), generate


@intrinsic
def call_system(typingctx, function):
    """Call the C function `int f(void)` at an address, e.g. sched_yield."""

    def generate(context, b, sig, args):
        b.call(b.inttoptr(args[0], ir.FunctionType(I32, []).as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def call_read(typingctx, function, file, address, count, offset):
    """Call the C function `ssize_t pread(int, void *, size_t, off_t)` at an address."""

    def generate(context, b, sig, args):
        kind = ir.FunctionType(I64, [I32, I64, I64, I64])
        function, file, *others = args
        return b.call(b.inttoptr(function, kind.as_pointer()), [b.trunc(file, I32), *others])

    i64 = types.int64
    return i64(i64, i64, i64, i64, i64), generate


@intrinsic
def call_advise(typingctx, function, address, count, advice):
    """Call the C function `int madvise(void *, size_t, int)` at an address."""

    def generate(context, b, sig, args):
        kind = ir.FunctionType(I32, [I64, I64, I32])
        function, address, count, advice = args
        b.call(b.inttoptr(function, kind.as_pointer()), [address, count, b.trunc(advice, I32)])
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64), generate


@jit
def is_last(finished, chunks):
    """Whether this chunk is the last of an op's `chunks` to come to its end; `finished`: a word that counts them."""
    if atomic_add(finished, 1) + 1 < chunks:
        return False
    atomic_store(finished, 0)
    return True
