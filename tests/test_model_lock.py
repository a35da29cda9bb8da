"""Calls that change a model have it alone, others share it; the order is that of arrival; nobody waits for itself."""

import threading
from collections.abc import Callable

import pytest
from webui_diffusers.loaders.model_lock import model_gate, models_in_use


class Model:
    """Anything that can be held."""


class Step:
    """A thread that enters, says so, and stays until it is let go."""

    def __init__(self, models: list, *, alone: bool):
        self.entered, self.let_go = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, args=(models, alone), daemon=True)
        self.thread.start()

    def _run(self, models: list, alone: bool) -> None:
        with models_in_use(models, alone=alone):
            self.entered.set()
            self.let_go.wait(10)

    def is_in(self) -> bool:
        return self.entered.wait(0.2)

    def ends(self) -> None:
        self.let_go.set()
        self.thread.join(10)


def _queued(count: int) -> None:
    """Until so many uses wait."""
    for _ in range(500):
        if len(model_gate().waiting) == count:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{len(model_gate().waiting)} uses wait, not {count}")


def test_readers_share_a_model():
    model = Model()
    one, other = Step([model], alone=False), Step([model], alone=False)
    assert one.is_in() and other.is_in()
    one.ends(), other.ends()


def test_who_changes_a_model_has_it_alone():
    model = Model()
    writer = Step([model], alone=True)
    assert writer.is_in()
    reader, second = Step([model], alone=False), Step([model], alone=True)
    assert not reader.is_in() and not second.is_in()
    writer.ends()
    assert reader.is_in() or second.is_in()
    reader.let_go.set(), second.let_go.set()
    assert reader.is_in() and second.is_in()
    reader.ends(), second.ends()


def test_other_models_do_not_wait():
    writer, other = Step([Model()], alone=True), Step([Model()], alone=True)
    assert writer.is_in() and other.is_in()
    writer.ends(), other.ends()


def test_a_reader_that_comes_later_does_not_overtake_a_writer_that_waits():
    model = Model()
    first = Step([model], alone=False)
    assert first.is_in()
    writer = Step([model], alone=True)
    _queued(1)
    late = Step([model], alone=False)
    _queued(2)
    assert not late.is_in()
    first.ends()
    assert writer.is_in() and not late.entered.is_set()
    writer.ends()
    assert late.is_in()
    late.ends()


def test_a_compiled_module_is_the_module_it_was_compiled_from():
    model, compiled = Model(), Model()
    compiled._orig_mod = model
    writer, reader = Step([model], alone=True), Step([compiled, None], alone=False)
    assert writer.is_in() != reader.is_in()
    writer.ends(), reader.ends()


@pytest.mark.parametrize("outer, inner", [(True, True), (True, False), (False, True)])
def test_a_call_inside_a_call_that_changes_the_model_is_refused(outer: bool, inner: bool):
    model = Model()
    with models_in_use([model], alone=outer):
        with pytest.raises(RuntimeError, match="inside a call on the same model"):
            with models_in_use([model], alone=inner):
                raise AssertionError("it got in")
    assert not model_gate().running and not model_gate().waiting


def test_a_plain_call_inside_a_plain_call_does_not_queue_behind_a_writer():
    model = Model()
    with models_in_use([model], alone=False):
        writer = Step([model], alone=True)
        _queued(1)
        with models_in_use([model], alone=False):
            assert not writer.entered.is_set()
    assert writer.is_in()
    writer.ends()


def test_calls_run_inside_a_block_of_the_callers_own():
    model = Model()
    with models_in_use([model], alone=True, is_call=False), models_in_use([model], alone=True):
        assert len(model_gate().running) == 2


def test_two_that_wait_for_each_other_are_told_instead():
    one, other = Model(), Model()
    both_hold, errors = threading.Barrier(2, timeout=10), []

    def cross(held: Model, wanted: Model) -> Callable[[], None]:
        def run() -> None:
            with models_in_use([held], alone=True):
                both_hold.wait()
                try:
                    with models_in_use([wanted], alone=True):
                        pass
                except RuntimeError as error:
                    errors.append(str(error))

        return run

    threads = [threading.Thread(target=cross(*pair)) for pair in ((one, other), (other, one))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert len(errors) == 1 and "wait for each other" in errors[0]


def test_a_thread_with_the_number_of_one_that_has_ended_is_another_thread():
    model = Model()
    for _ in range(50):
        block = models_in_use([model], alone=True, is_call=False)
        opener = threading.Thread(target=block.__enter__)
        opener.start()
        opener.join()
        late = Step([model], alone=True)
        entered = late.is_in()
        block.__exit__(None, None, None)
        late.ends()
        assert not entered
        if late.thread.ident == opener.ident:
            return
    pytest.skip("the system gave no number twice")


def test_an_interrupt_while_waiting_leaves_nobody_in_the_queue():
    model = Model()
    writer = Step([model], alone=True)
    assert writer.is_in()
    gate = model_gate()
    wait, gate.changed.wait = gate.changed.wait, _interrupted
    try:
        with pytest.raises(KeyboardInterrupt), models_in_use([model], alone=False):
            raise AssertionError("it got in")
    finally:
        gate.changed.wait = wait
    assert not gate.waiting
    writer.ends()


def _interrupted() -> None:
    raise KeyboardInterrupt
