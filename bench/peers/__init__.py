"""Other libraries at the same work: `python -m bench.peers` times whole networks against them."""
