"""The fault cloud: Kinesis or DynamoDB Streams over HTTP, doing what no emulator does, by a
script and a seed.

    python -m replicator.testing.cloud --port 4599 --seed 7 --script full --rate 200
    python -m replicator.testing.cloud --source streams --script streams --rate 200

`faults` decides, `misbehaving` performs what both services share, `server` what Kinesis and
`streams` what DynamoDB Streams has of its own; `workload` makes a table's changes, `control` is
the way in for tests, `journal` says what was done.
"""

from replicator.testing.cloud.faults import KINDS, Fault, parse_script
from replicator.testing.cloud.misbehaving import CloudClock
from replicator.testing.cloud.scripts import SCRIPTS
from replicator.testing.cloud.server import FaultCloud
from replicator.testing.cloud.streams import StreamsCloud

__all__ = ["KINDS", "SCRIPTS", "CloudClock", "Fault", "FaultCloud", "StreamsCloud", "parse_script"]
