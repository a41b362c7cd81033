"""Numba kernels: the only folder that imports numba.

A kernel is a function (o, step, chunk, thread): the operands of its op and the step's header, as records whose fields
are attributes (records.py; operands.py declares them); which chunk of its work to do; and which thread does it (for
scratch). In machine code these are four int64. It never raises, allocates, or touches a Python object; shapes and
bounds were checked when the plan was built. Kernels are compiled on first use, to a cache folder of their own
(cache.py). Where there is one for each format, all are stamped out of one function (stamp.py), which reads weights by
what its format's file in formats/ says (reader.py, products.py, rows.py).
"""
