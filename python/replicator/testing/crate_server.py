"""stub"""

from __future__ import annotations


class CrateServer:
    url = ""

    def copy(self) -> None: ...
    def fail_over(self) -> None: ...
    async def __aenter__(self) -> "CrateServer":
        return self

    async def __aexit__(self, *a: object) -> None: ...
