"""The fault cloud: a Kinesis over HTTP that does what no emulator does, by a script and a seed.

    python -m replicator.testing.cloud --port 4599 --seed 7 --script full --rate 200

`faults` decides, `server` performs, `workload` makes a table's changes, `control` is the way
in for tests, `journal` says what was done.
"""

from replicator.testing.cloud.faults import KINDS, Fault, parse_script
from replicator.testing.cloud.scripts import SCRIPTS
from replicator.testing.cloud.server import CloudClock, FaultCloud

__all__ = ["KINDS", "SCRIPTS", "CloudClock", "Fault", "FaultCloud", "parse_script"]
