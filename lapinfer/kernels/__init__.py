"""Numba kernels: the only folder that imports numba.

A kernel is a function (op, step, chunk, thread) of int64: the address of its operands (a row of int64 in the
plan), the address of the step's header, which chunk of its work to do, and which thread does it (for scratch).
It never raises, allocates, or touches a Python object; shapes and bounds were checked when the plan was built.
Kernels are compiled on first use, to a cache folder of their own (see cache.py).
"""
