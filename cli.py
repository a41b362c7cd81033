import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # before the first import that takes time

from lapinfer.__main__ import main  # noqa: E402

main()
