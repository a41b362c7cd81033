"""Weight formats: how numbers are quantized, packed and unpacked. NumPy only.

A matrix [R, C] is cut into row blocks of 16 rows, and these into blocks of 16 rows × 32 columns (missing rows and
columns are zero). BAND row blocks make a band: it has their heads, then, for every group of 32 columns, one block of
each of them. The last band may have fewer. Each format's own file (lapinfer/quant/formats) says what its blocks hold.

    format.py    what any format is: its bytes, and what packing decides by it
    floats.py    formats of float numbers
    groups.py    formats of integer codes with a scale for 32 columns, and groups that have one
    formats/     one file per format; FORMATS is all of them
    choice.py    which format a matrix gets
    quantize.py  from numbers to groups; search.py has what several formats' searches share
    calibrate.py quantization by what is known of a matrix's inputs
    blocks.py    packed matrices; rows.py: packed row by row
"""

ROWS, GROUP = 16, 32
"""Rows and columns of a block; a group of columns of one row shares a scale."""

BAND = 8
"""Row blocks that lie side by side: one token's product then reads memory in one stream, and the token's own numbers
once for all of them."""

LANES = 4
"""Columns of one row that lie side by side: a 32-bit lane of an integer dot product."""
