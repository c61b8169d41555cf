"""What all tests share."""

import os

# Each test computes what it asserts: results of earlier runs are not taken. tests/test_cache.py sets its own.
os.environ["EDGEKIT_CACHE_LIMIT_GB"] = "0"
