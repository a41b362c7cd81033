"""The `lapinfer` command. Ctrl-C ends it without a traceback at any moment, imports and interpreter exit included."""

import signal


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is a handler (lapinfer/interrupts.py)
    from lapinfer import cli

    cli.main()


if __name__ == "__main__":
    main()
