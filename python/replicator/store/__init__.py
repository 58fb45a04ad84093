"""Lease stores: who may read which shard. The decisions are `core.lease`'s."""
