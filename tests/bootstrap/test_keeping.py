"""What the keeper does next: the smallest remedy first, then a wait, and nothing without a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstrap import keeping
from bootstrap.keeping import Limits, Memory, Remedy, Seen

LIMITS = Limits(hang_s=10, ready_s=20)
WELL = Seen(gcs=True, raylet=True, dashboard=True, gcs_answers=True, raylet_answers=True, ready=True)


def seen(**changed: bool | None) -> Seen:
    return Seen(**{name: changed.get(name, getattr(WELL, name)) for name in Seen.__slots__})


def after(*looks: tuple[float, Seen], memory: Memory | None = None) -> keeping.Next:
    memory = memory or Memory()
    for now, look in looks:
        memory = keeping.look(memory, look, now)
    now, last = looks[-1]
    return keeping.decide(memory, last, now, LIMITS)


@pytest.mark.parametrize(
    ("look", "remedy"),
    [
        (WELL, None),
        (seen(gcs=False), Remedy.GCS),
        (seen(raylet=False), Remedy.HEAD),
        (seen(gcs=False, raylet=False, dashboard=False), Remedy.HEAD),
        (seen(dashboard=False), Remedy.DASHBOARD),
        (seen(ready=False), None),
        (seen(gcs_answers=None, raylet_answers=None, ready=None), None),
    ],
)
def test_what_is_missing_is_started_at_once_and_nothing_else(look: Seen, remedy: Remedy | None) -> None:
    assert after((100.0, look)).remedy is remedy


@pytest.mark.parametrize(("part", "remedy"), [("gcs_answers", Remedy.GCS), ("raylet_answers", Remedy.HEAD)])
def test_a_hang_is_forgiven_for_a_while(part: str, remedy: Remedy) -> None:
    silent = seen(**{part: False})
    assert after((0.0, silent), (9.9, silent)).remedy is None
    assert after((0.0, silent), (10.0, silent)).remedy is remedy
    assert after((0.0, silent), (5.0, WELL), (10.0, silent)).remedy is None


def test_an_agent_that_is_not_ready_for_long_is_deployed_again() -> None:
    unready = seen(ready=False)
    assert after((0.0, unready), (19.9, unready)).remedy is None
    assert after((0.0, unready), (20.0, unready)).remedy is Remedy.DEPLOY
    assert after((0.0, unready), (20.0, seen(ready=None))).remedy is Remedy.DEPLOY  # not asked is no answer


def test_a_gcs_that_does_not_stay_up_takes_the_whole_head() -> None:
    memory, now, tried = Memory(), 0.0, []
    gone = seen(gcs=False)
    for _ in range(4):
        memory = keeping.look(memory, gone, now)
        while keeping.decide(memory, gone, now, LIMITS).remedy is None:
            now += 1.0
        remedy = keeping.decide(memory, gone, now, LIMITS).remedy
        assert remedy is not None
        tried.append(remedy)
        memory = keeping.tried(memory, remedy, now, ok=False)
    assert tried == [Remedy.GCS, Remedy.GCS, Remedy.HEAD, Remedy.HEAD]


def test_remedies_wait_longer_and_longer_and_never_for_ever() -> None:
    memory, now, waits = Memory(), 0.0, []
    for _ in range(11):
        memory = keeping.tried(memory, Remedy.HEAD, now, ok=False)
        waits.append(memory.next_at - now)
        now = memory.next_at
    assert waits == sorted(waits)
    assert waits[0] == 1.0
    assert waits[-1] == 300.0


def test_a_dashboard_that_does_not_start_hides_no_hang_and_holds_no_greater_remedy_up() -> None:
    memory, now, tried = Memory(), 0.0, []
    look = seen(dashboard=False, gcs_answers=False)
    while Remedy.GCS not in tried:
        assert now < LIMITS.hang_s + 1, tried
        memory = keeping.look(memory, look, now)
        found = keeping.decide(memory, look, now, LIMITS)
        if found.remedy is not None:
            tried.append(found.remedy)
            memory = keeping.tried(memory, found.remedy, now, ok=False)
        now += 1.0
    assert tried == [*[Remedy.DASHBOARD] * 3, Remedy.GCS]
    assert "has not answered" in found.why


def test_after_half_a_minute_of_peace_the_next_trouble_is_a_new_one() -> None:
    memory = keeping.tried(Memory(), Remedy.GCS, 0.0, ok=True)
    memory = keeping.look(memory, WELL, 5.0)
    assert keeping.look(memory, WELL, 34.9).tries
    memory = keeping.look(memory, WELL, 35.0)
    assert not memory.tries
    assert memory.next_at == 0.0


def test_a_restarted_head_gives_the_agent_its_time() -> None:
    unready = seen(ready=False)
    memory = keeping.look(Memory(), unready, 0.0)
    memory = keeping.tried(memory, Remedy.HEAD, 30.0, ok=True)
    memory = keeping.look(memory, unready, 31.0)
    assert keeping.decide(memory, unready, 40.0, LIMITS).remedy is None
    assert keeping.decide(memory, unready, 50.0, LIMITS).remedy is Remedy.DEPLOY


answer = st.sampled_from([True, False, None])
looks = st.builds(
    Seen,
    gcs=st.booleans(),
    raylet=st.booleans(),
    dashboard=st.booleans(),
    gcs_answers=answer,
    raylet_answers=answer,
    ready=answer,
)


@given(st.lists(st.tuples(looks, st.floats(0, 30)), min_size=1, max_size=40))
def test_never_twice_before_the_wait_is_over_and_never_without_a_reason(
    story: list[tuple[Seen, float]],
) -> None:
    memory, now, lasts = Memory(), 0.0, [0.0, 0.0]
    for look, passed in story:
        now += passed
        memory = keeping.look(memory, look, now)
        found = keeping.decide(memory, look, now, LIMITS)
        if found.remedy is None:
            continue
        assert found.why
        assert now >= lasts[found.remedy is Remedy.DASHBOARD]
        if found.remedy in (Remedy.DASHBOARD, Remedy.DEPLOY):
            assert look.gcs
            assert look.raylet  # what lives is not ended for a lesser part
        memory = keeping.tried(memory, found.remedy, now, ok=False)
        lasts = [memory.next_at, memory.dashboard_at]
