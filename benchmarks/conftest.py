"""Leaves out what cannot be imported without an extra."""

import importlib.util

# PyTorch is in the extra `bench`.
collect_ignore = [] if importlib.util.find_spec('torch') else ['peers.py']
