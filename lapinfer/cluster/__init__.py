"""More than one computer, by Ray: a batch over Ray Data, a server over Ray Serve. Only these modules know Ray.

start.py joins a cluster or starts one, copies.py brings a packed model to a node that lacks it; documents.py runs a
batch; prefixes.py and routing.py say which replica gets a request, replica.py answers it, front.py takes it from the
client, and service.py puts these together. Nothing of it is imported without --ray (pip install "lapinfer[cluster]").
"""
