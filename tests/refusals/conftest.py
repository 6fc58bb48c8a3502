from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from ledger_world import FAST
from refusal_world import RefusalWorld, refusal_world
from refusals import Case, Tally, try_case

TITLE = "R8: refused before a byte is written"

Try = Callable[[str, Case], None]


@pytest.fixture(scope="session")
def made_world() -> Iterator[RefusalWorld]:
    with refusal_world(FAST) as world:
        yield world


@pytest.fixture(scope="session")
def tallies(figures: Callable[..., None]) -> Iterator[dict[str, Tally]]:
    found: dict[str, Tally] = {}
    yield found
    for group, tally in [*found.items(), ("all", _sum(found))]:
        figures(TITLE, what=group, **vars(tally))


@pytest.fixture(scope="session")
def turns() -> Iterator[int]:
    return itertools.count()


@pytest.fixture(autouse=True)
def own_cache(made_world: RefusalWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(made_world.cache))


@pytest.fixture
def world(made_world: RefusalWorld) -> RefusalWorld:
    made_world.restore()
    return made_world


@pytest.fixture
def refuse(
    made_world: RefusalWorld,
    tallies: dict[str, Tally],
    turns: Iterator[int],
    capfd: pytest.CaptureFixture[str],
    full: bool,
) -> Try:
    """`refuse(group, case)` tries a case and counts it under its group."""

    def try_it(group: str, case: Case) -> None:
        try_case(case, made_world, tallies.setdefault(group, Tally()), capfd, full=full, turn=next(turns))

    return try_it


def _sum(found: dict[str, Tally]) -> Tally:
    total = Tally()
    for tally in found.values():
        for name, value in vars(tally).items():
            setattr(total, name, getattr(total, name) + value)
    return total
