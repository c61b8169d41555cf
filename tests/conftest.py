"""What all tests share."""

import os
import signal

# Each test computes what it asserts: results of earlier runs are not taken. tests/test_cache.py sets its own.
os.environ["EDGEKIT_CACHE_LIMIT_GB"] = "0"

# A shell starts what runs in the background with Ctrl-C ignored, and children inherit that: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
