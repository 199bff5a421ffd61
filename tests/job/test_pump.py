import gc
import multiprocessing
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from rayferry.job.calls import Call
from rayferry.job.errors import EngineError
from rayferry.job.pump import Pump, RefusedError, Settled

WAIT_S = 10  # only ever waited out by a test that fails


class FakeEngine:
    """An engine whose prompts say what happens to them.

    `word` finishes after one step, `word*3` after three, `word*held` once `release` is set; `refuse` is refused,
    `refuse late` by a step's output; `add!` kills the engine when it is added, `step!` when it is stepped.
    """

    def __init__(self, death=RuntimeError("out of memory")):  # noqa: B008  # never changed
        self.death = death
        self.release = threading.Event()
        self.stepping = threading.Event()
        self.threads = set()
        self.together = 0
        self._left = {}
        self._count = 0

    def add(self, call):
        self.threads.add(threading.current_thread().name)
        word, _, steps = call.prompt.partition("*")
        if word == "refuse":
            raise RefusedError("length") from ValueError("too long")
        if word == "add!":
            raise self.death
        self._count += 1
        self._left[str(self._count)] = (word, steps if steps == "held" else int(steps or 1))
        return str(self._count)

    def step(self):
        assert self._left, "stepped with nothing to do"
        self.threads.add(threading.current_thread().name)
        self.together = max(self.together, len(self._left))
        self.stepping.set()
        outputs = []
        for request_id, (word, left) in list(self._left.items()):
            if word == "step!":
                raise self.death
            if left == "held":
                finished = self.release.is_set()
            else:
                finished = left == 1
                self._left[request_id] = (word, left - 1)
            if finished:
                del self._left[request_id]
            if word == "refuse late":
                outputs.append(Settled(request_id, RefusedError("engine")))
            else:
                outputs.append(SimpleNamespace(request_id=request_id, finished=finished, text=word.upper()))
        return outputs

    def is_busy(self):
        return bool(self._left)

    def abort(self, request_id):
        del self._left[request_id]


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def pump(engine):
    pump = Pump(engine)
    yield pump
    engine.release.set()
    pump.close()


def calls(*prompts):
    return [Call(prompt) for prompt in prompts]


def texts(future):
    return [outcome.text for outcome in future.result(WAIT_S)]


def test_outcomes_are_in_the_order_of_the_prompts_whatever_finishes_first(pump):
    assert texts(pump.submit(calls("slow*5", "fast", "middle*3"))) == ["SLOW", "FAST", "MIDDLE"]


def test_only_finished_outputs_are_outcomes(pump):
    assert all(outcome.finished for outcome in pump.submit(calls("a*4", "b*2")).result(WAIT_S))


def test_an_empty_batch_is_done_at_once(pump):
    assert pump.submit([]).result(0) == []


def test_a_batch_does_not_wait_for_one_that_came_before(pump):
    held = pump.submit(calls("slow*held"))
    assert (texts(pump.submit(calls("fast"))), held.done()) == (["FAST"], False)


def test_a_request_that_takes_too_long_is_given_up_and_the_others_go_on(engine):
    pump = Pump(engine, request_timeout_s=0.3)
    late, good = pump.submit(calls("slow*held", "fast")).result(WAIT_S)
    assert (late.columns(), good.text) == (
        {"stage": "engine", "error_type": "RequestTimeout", "error": "no answer in 0.3 s (retry.request_timeout)"},
        "FAST",
    )
    assert not engine.is_busy()
    assert texts(pump.submit(calls("next"))) == ["NEXT"]
    pump.close()


def test_of_requests_that_are_over_nothing_waits_for_their_timeout(engine):
    pump = Pump(engine, request_timeout_s=600)
    pump.submit(calls(*"abcdefgh")).result(WAIT_S)
    pump.close()
    assert not pump._added


def test_an_engine_whose_own_process_is_killed_is_dead_though_it_does_not_return(engine):
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=[60], name="EngineCore", daemon=True)
    process.start()
    engine.step = lambda: time.sleep(3) or []  # as vLLM waits for what cannot come
    pump = Pump(engine, timeout_s=600, processes=[process])
    waiting = pump.submit(calls("a"))
    process.kill()
    with pytest.raises(EngineError, match=r"^the engine died: RuntimeError: its process EngineCore ended"):
        waiting.result(WAIT_S)


def test_batches_run_in_the_engine_together(pump, engine):
    held = pump.submit(calls("a*held", "b*held"))
    texts(pump.submit(calls("c", "d", "e")))
    engine.release.set()
    held.result(WAIT_S)
    assert engine.together == 5


def test_a_batch_can_follow_after_the_engine_was_idle(pump):
    assert texts(pump.submit(calls("a"))) + texts(pump.submit(calls("b"))) == ["A", "B"]


def test_the_same_prompt_twice_is_two_requests(pump):
    assert texts(pump.submit(calls("a", "a*3", "a"))) == ["A", "A", "A"]


@pytest.mark.parametrize(("prompt", "stage"), [("refuse", "length"), ("refuse late", "engine")])
def test_the_outcome_of_a_refused_prompt_is_its_refusal(pump, prompt, stage):
    (outcome,) = pump.submit(calls(prompt)).result(WAIT_S)
    assert (type(outcome), str(outcome)) == (RefusedError, stage)


def test_a_refusal_keeps_the_engines_reason_as_its_cause(pump):
    (outcome,) = pump.submit(calls("refuse")).result(WAIT_S)
    assert repr(outcome.__cause__) == "ValueError('too long')"


def test_a_refused_prompt_leaves_the_others_of_its_batch_alone(pump):
    first, refused, last = pump.submit(calls("a*2", "refuse", "b")).result(WAIT_S)
    assert (first.text, type(refused), last.text) == ("A", RefusedError, "B")


def test_a_refused_prompt_does_not_end_the_engine(pump):
    pump.submit(calls("refuse", "refuse")).result(WAIT_S)
    assert texts(pump.submit(calls("a"))) == ["A"]


@pytest.mark.parametrize("deadly", ["step!", "add!"])
def test_a_dead_engine_fails_the_batch_that_it_died_of(deadly):
    future = Pump(FakeEngine()).submit(calls("a*held", deadly, "b"))
    assert isinstance(future.exception(WAIT_S), EngineError)


@pytest.mark.parametrize("deadly", ["step!", "add!"])
def test_a_dead_engine_fails_the_batches_that_it_had(deadly):
    pump = Pump(FakeEngine())
    before = pump.submit(calls("a*held"))
    pump.submit(calls(deadly))
    assert isinstance(before.exception(WAIT_S), EngineError)


@pytest.mark.parametrize("deadly", ["step!", "add!"])
def test_a_dead_engine_fails_every_later_batch_at_once(deadly):
    pump = Pump(FakeEngine())
    pump.submit(calls(deadly)).exception(WAIT_S)
    pump._thread.join(WAIT_S)
    assert isinstance(pump.submit(calls("a")).exception(0), EngineError)


def test_a_dead_engine_fails_the_batches_that_wait_behind_the_deadly_one():
    engine = FakeEngine()
    entered, go = threading.Event(), threading.Event()

    def add(_call):
        entered.set()
        assert go.wait(WAIT_S)
        raise engine.death

    engine.add = add
    pump = Pump(engine)
    pump.submit(calls("first"))
    assert entered.wait(WAIT_S)
    waiting = pump.submit(calls("second"))
    go.set()
    assert isinstance(waiting.exception(WAIT_S), EngineError)


def test_the_error_of_a_dead_engine_says_of_what_it_died():
    error = Pump(FakeEngine()).submit(calls("step!")).exception(WAIT_S)
    assert str(error) == "the engine died: RuntimeError: out of memory"


def test_the_error_of_a_dead_engine_has_the_death_as_its_cause():
    engine = FakeEngine()
    assert Pump(engine).submit(calls("step!")).exception(WAIT_S).__cause__ is engine.death


@pytest.mark.parametrize("death", [SystemExit(1), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_nobody_is_left_waiting_whatever_the_engine_raises(death):
    assert isinstance(Pump(FakeEngine(death)).submit(calls("a", "step!")).exception(WAIT_S), EngineError)


@pytest.mark.parametrize("prompts", [["a*held"], ["b", "a*held"]])
def test_an_engine_whose_step_does_not_end_is_dead(prompts):
    engine = FakeEngine()
    never = threading.Event()
    engine.step = never.wait
    error = Pump(engine, timeout_s=0.1).submit(calls(*prompts)).exception(WAIT_S)
    never.set()
    assert str(error).startswith("the engine died: TimeoutError: it hangs: no step ended in 0.1 s")


def test_an_engine_that_has_nothing_to_do_does_not_hang(engine):
    pump = Pump(engine, timeout_s=0.05)
    texts(pump.submit(calls("a")))
    time.sleep(0.3)
    assert texts(pump.submit(calls("b"))) == ["B"]


def test_an_engine_whose_every_step_ends_in_time_does_not_hang_however_long_it_works():
    engine = FakeEngine()
    step = engine.step

    def slow():
        time.sleep(0.02)
        return step()

    engine.step = slow
    assert texts(Pump(engine, timeout_s=0.4).submit(calls("a*40"))) == ["A"]


def test_a_batch_that_its_caller_gave_up_does_not_end_the_engine(pump, engine):
    abandoned = pump.submit(calls("a*held"))
    assert engine.stepping.wait(WAIT_S)
    abandoned.cancel()
    engine.release.set()
    assert texts(pump.submit(calls("b*3"))) == ["B"]


def test_batches_from_many_threads_each_get_their_own_answers(pump):
    wrong = []

    def work(name):
        for number in range(30):
            word = f"{name}-{number}"
            got = pump.submit(calls(*(f"{word}-{i}*{1 + (number + i) % 4}" for i in range(5))))
            if texts(got) != [f"{word}-{i}".upper() for i in range(5)]:
                wrong.append(word)

    threads = [threading.Thread(target=work, args=[f"t{index}"]) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert wrong == []


def test_one_thread_alone_touches_the_engine(pump, engine):
    threads = [threading.Thread(target=lambda: pump.submit(calls("a", "b*2")).result(WAIT_S)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert engine.threads == {"rayferry-pump"}


@pytest.mark.parametrize("prompt", ["a", "refuse", "refuse late"])
def test_what_a_batch_held_is_gone_with_it_though_the_collector_does_not_look(pump, prompt):
    class Kept(dict):
        """Can be referred to weakly."""

    gc.disable()
    try:
        asked = [Call(prompt, sampling=Kept()), Call("b", sampling=Kept())]
        held = [weakref.ref(call.sampling) for call in asked]
        pump.submit(asked).result(WAIT_S)
        del asked
        texts(pump.submit(calls("c")))  # the thread lets go of the last batch when it takes another
        assert [kept() for kept in held] == [None, None]
    finally:
        gc.enable()


def test_the_thread_does_not_keep_the_process_alive(pump):
    assert pump._thread.daemon


def test_close_ends_an_idle_thread(engine):
    pump = Pump(engine)
    pump.close()
    assert not pump._thread.is_alive()


def test_close_lets_the_engine_finish_what_it_has(engine):
    pump = Pump(engine)
    running = pump.submit(calls("a*50", "b*3"))
    pump.close()
    assert running.done()


class Choosy(FakeEngine):
    """Runs two at a time; remembers in which order it got them."""

    room = 2

    def __init__(self):
        super().__init__()
        self.got = []

    def tokens_of(self, call):
        return int(call.prompt.partition("*")[2] or 1)

    def add(self, call):
        self.got.append(call.prompt[-3:])
        return super().add(call)


def test_the_engine_gets_no_more_than_it_has_room_for_and_of_the_last_the_longest_first():
    engine = Choosy()
    pump = Pump(engine, all_here=True)
    pump.submit(calls("a*1", "b*5", "c*3", "d*4")).result(WAIT_S)
    assert (engine.got, engine.together) == (["a*1", "b*5", "d*4", "c*3"], 2)
    pump.close()


def test_prompts_that_begin_alike_are_gathered_before_the_first_one_runs():
    engine = Choosy()
    pump = Pump(engine, all_here=True)
    prompts = ["x" * 600 + "*1", "y" * 600 + "*1", "x" * 600 + "*1"]
    batches = [pump.submit(calls(*several)) for several in (prompts, prompts[1:])]
    for batch in batches:
        batch.result(WAIT_S)
    assert engine.got == ["x*1"] * 3 + ["y*1"] * 2
    pump.close()
