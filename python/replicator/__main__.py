"""`python -m replicator` is the same as `replicator`."""

from __future__ import annotations

from replicator.cli import main

if __name__ == "__main__":
    main()
