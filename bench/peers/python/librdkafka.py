"""librdkafka's side of `bench/kafka_send.py`: `librdkafka.py FILE BROKER TOPIC CODEC TRANSACTIONS`.

Says `ready`; then, for each line of its standard input, sends all of the file's records, waits
until they are durable, and prints a line. A script of its own, and nothing of the product.
"""

from __future__ import annotations

import gc
import importlib
import pickle
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    file, broker, topic, codec, transactions = sys.argv[1:]
    is_transactional = transactions == "1"
    chunks = pickle.loads(Path(file).read_bytes())
    settings: dict[str, Any] = {
        "bootstrap.servers": broker,
        "enable.idempotence": True,
        "compression.type": codec,
        "partitioner": "murmur2_random",
        "batch.size": 1_000_000,
        "message.max.bytes": 4_000_000,
        "queue.buffering.max.messages": 1_000_000,
    }
    if is_transactional:
        settings["transactional.id"] = topic
    producer = importlib.import_module("confluent_kafka").Producer(settings)
    if is_transactional:
        producer.init_transactions()
    print("ready", flush=True)
    gc.disable()
    for _ in sys.stdin:
        for chunk in chunks:
            if is_transactional:
                producer.begin_transaction()
            for timestamp, key, value, headers in chunk:
                producer.produce(topic, value, key, headers=headers, timestamp=timestamp)
            if is_transactional:
                producer.commit_transaction()
        left = producer.flush()
        print("failed" if left else "sent", flush=True)


main()
