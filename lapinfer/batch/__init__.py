"""Many requests in a file, answered in this process: `lapinfer batch`.

lines.py reads files into lines, requests.py a line into a request of a protocol that lapinfer/serve/ has, engine.py
answers it with the endpoint that a client would ask; journal.py keeps what is done, so that a batch goes on after a
kill; run.py puts these together. Needs what serve needs (pip install "lapinfer[batch]").
"""
