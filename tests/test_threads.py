"""Threads, processes and modes of the caller: the same results as alone, the network untouched."""

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import selector
from selector.data.exclusive import lock_of, one_at_a_time
from selector.tensor_files import checksum
from tests.networks import data, small, state_of

ASKED = {"keep_macs": 0.6, "rounds": 2, "criterion": "taylor"}


def values_of(model: nn.Module) -> str:
    return checksum(model.state_dict(), "")


def chosen(model: nn.Module) -> object:
    return selector.choose(model, data(), ratio=0.4)


def pruned(model: nn.Module) -> object:
    result = selector.prune(model, data(), **ASKED)
    return result.plan, values_of(result.model)


def scored(model: nn.Module) -> object:
    found = selector.score(model, data(), ["fisher", "l1"])
    return {g: {m: x.tolist() for m, x in of.items()} for g, of in found.items()}


def measured(model: nn.Module) -> object:
    return selector.loss_changes(model, data(), "stem", [[0], [1, 2]])


def applied(model: nn.Module) -> object:
    plan = selector.choose(model, data(), ratio=0.3, criterion="l1")
    return values_of(selector.apply_plan(model, plan))


WORK: Mapping[str, Callable[[nn.Module], object]] = {
    "choose": chosen,
    "prune": pruned,
    "score": scored,
    "loss_changes": measured,
    "apply_plan": applied,
}


def network() -> nn.Module:
    return small("plain", 8, norm=True)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    return {name: repr(work(network())) for name, work in WORK.items()}


@pytest.mark.parametrize("shared", [True, False])
def test_threads_get_what_one_gets_alone(shared: bool, alone: dict[str, str]) -> None:
    model = network()
    before = state_of(model)
    names = [*WORK] * 2
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: repr(WORK[name](model if shared else network())), names))
    assert dict(zip(names, found, strict=True)) == alone
    assert found == [alone[name] for name in names]
    assert state_of(model) == before
    assert hooks(model) == 0


def test_two_threads_are_never_at_one_network_at_once() -> None:
    inside, most = 0, 0

    @one_at_a_time
    def work(model: nn.Module, again: bool) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        if again:  # The same thread may come in again.
            work(model=model, again=False)
        inside -= 1

    model = network()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda again: work(model, again), [True, False, True, False]))
    assert most == 2
    assert lock_of(model) is lock_of(torch.compile(model))
    assert lock_of(model) is not lock_of(network())


def in_child(name: str) -> str:
    torch.set_num_threads(1)
    return repr(WORK[name](network()))


@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_get_the_same(how: str, alone: dict[str, str]) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context(how)) as pool:
        assert {name: pool.submit(in_child, name).result() for name in WORK} == alone


def test_a_forked_process_waits_for_no_thread_that_it_does_not_have() -> None:
    model, held, done = network(), threading.Event(), threading.Event()

    def holds() -> None:
        with lock_of(model):
            held.set()
            done.wait()

    thread = threading.Thread(target=holds)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        selector.evaluate(model, data())
        os._exit(0)
    end = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.05)
    if ended == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    done.set()
    thread.join()
    assert ended == (child, 0)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_callers_without_gradients_get_the_same(
    mode: Callable[[], object], alone: dict[str, str]
) -> None:
    model = network()
    for name, work in WORK.items():
        with mode():  # type: ignore[attr-defined]
            assert repr(work(model)) == alone[name], name


def test_inside_a_running_event_loop(alone: dict[str, str]) -> None:
    """As in a notebook."""

    async def cell() -> str:
        return repr(scored(network()))

    assert asyncio.run(cell()) == alone["score"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_a_data_loader_are_read_as_a_list_is(workers: int) -> None:
    images, labels = (torch.cat(parts) for parts in zip(*data(), strict=True))
    size = len(data()[0][0])
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(
        TensorDataset(images, labels), batch_size=size, num_workers=workers
    )
    asked = {"ratio": 0.4, "criterion": "taylor"}
    plan = selector.choose(network(), loader, **asked)
    assert plan == selector.choose(network(), data(), **asked)
