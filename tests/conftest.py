"""Shared by all tests."""

import signal

# A background job of a shell ignores Ctrl-C and hands that on to whatever it starts: tests that interrupt would not.
signal.signal(signal.SIGINT, signal.default_int_handler)
