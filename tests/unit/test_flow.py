from __future__ import annotations

import asyncio

import pytest

from replicator.core.budget import Budget
from replicator.flow import Gate


class Buffer:
    """A holder that only counts how often it was told to write."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.relieved = 0

    def relieve(self) -> None:
        self.relieved += 1


async def steps(count: int = 3) -> None:
    """Lets whoever can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_bytes_that_fit_are_taken_at_once() -> None:
    gate = Gate(Budget(100))
    await gate.take(60)
    await gate.take(40)
    assert (gate.used, gate.is_full) == (100, False)


async def test_who_came_first_goes_first_even_if_a_later_one_would_fit() -> None:
    gate, order = Gate(Budget(100)), []
    await gate.take(90)

    async def take(nbytes: int) -> None:
        await gate.take(nbytes)
        order.append(nbytes)

    async with asyncio.TaskGroup() as group:
        for nbytes in (80, 5, 50):
            group.create_task(take(nbytes))
            await steps(1)
        assert gate.is_full
        await steps()
        assert order == []
        gate.give(90)
        await steps()
        assert order == [80, 5]
        gate.give(80)
    assert order == [80, 5, 50]
    assert gate.used == 55


async def test_one_that_is_larger_than_the_limit_fits_alone() -> None:
    gate = Gate(Budget(100))
    await gate.take(1_000)
    gate.give(1_000)
    await gate.take(1)
    large = asyncio.ensure_future(gate.take(1_000))
    await steps()
    assert not large.done()
    gate.give(1)
    await large
    assert gate.used == 1_000


async def test_cancelled_while_waiting_it_charges_nothing_and_lets_the_next_one_in() -> None:
    gate = Gate(Budget(100))
    await gate.take(50)
    large, small = (asyncio.ensure_future(gate.take(nbytes)) for nbytes in (90, 40))
    await steps()
    large.cancel()
    await asyncio.wait({large, small})
    assert large.cancelled()
    assert not small.cancelled()
    assert (gate.used, gate.is_full) == (90, False)


async def test_cancelled_when_it_was_just_let_in_it_gives_back() -> None:
    gate = Gate(Budget(100))
    await gate.take(100)
    waiting = asyncio.ensure_future(gate.take(70))
    await steps()
    gate.give(100)
    assert gate.used == 70
    waiting.cancel()
    await asyncio.wait({waiting})
    assert gate.used == 0


async def test_bytes_may_come_back_in_the_step_in_which_a_waiter_is_cancelled() -> None:
    """The giver set a result on the cancelled waiter and died of it, a lane in service."""
    gate = Gate(Budget(100))
    await gate.take(100)
    waiting = asyncio.ensure_future(gate.take(70))
    behind = asyncio.ensure_future(gate.take(30))
    await steps()
    waiting.cancel()
    gate.give(100)
    await asyncio.wait({waiting, behind})
    assert waiting.cancelled()
    assert (gate.used, gate.is_full) == (30, False)


@pytest.mark.parametrize("sizes", [(10, 30, 20), (30, 10, 20)])
async def test_the_largest_open_buffer_is_told_to_write(sizes: tuple[int, ...]) -> None:
    gate, buffers = Gate(Budget(100)), [Buffer(nbytes) for nbytes in sizes]
    for buffer in buffers:
        gate.register(buffer)
    await gate.take(100)
    waiting = asyncio.ensure_future(gate.take(1))
    await steps()
    assert [buffer.nbytes for buffer in buffers if buffer.relieved] == [30]
    gate.give(100)
    await waiting


async def test_as_long_as_somebody_waits_every_release_asks_for_more() -> None:
    gate, buffer = Gate(Budget(100)), Buffer(80)
    gate.register(buffer)
    await gate.take(100)
    waiting = asyncio.ensure_future(gate.take(60))
    await steps()
    gate.give(20)
    assert buffer.relieved == 2
    gate.give(40)
    await waiting
    assert buffer.relieved == 2


async def test_what_decoding_adds_may_pass_the_limit_but_lets_nobody_in() -> None:
    gate = Gate(Budget(100))
    await gate.take(80)
    gate.adjust(70)
    waiting = asyncio.ensure_future(gate.take(1))
    await steps()
    assert (gate.used, waiting.done()) == (150, False)
    gate.adjust(-60)
    await waiting
    assert gate.used == 91
