"""Shared by all tests."""

import signal

import torch

# A background job of a shell ignores Ctrl-C and hands that on to whatever it starts: tests that interrupt would not.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As a run has it. Digits may depend on it, and small tensors are no faster on more.
torch.set_num_threads(1)
