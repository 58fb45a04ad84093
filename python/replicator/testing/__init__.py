"""Shipped fakes and throw-away servers: part of the product, held to its contracts."""
