"""A chat in the terminal: the loop (loop.py) over a talk (talk.py), its commands, its readers of lines, its pen."""
