"""Two CUDA devices that are not there: tensors compute on the CPU, and stand on a device as on a real machine.

Torch's FakeTensorMode, which knows shapes and devices alone, cannot carry a run: answers that are drawn, scores,
samplers and checkpoints need numbers. Here every tensor has them, and its storage has a tag that says where it stands:
`device` answers with the tag, `to` changes it, what is computed of tagged tensors stands where they stand, and what
mixes two devices raises as a kernel of CUDA would. What CUDA takes from the CPU is taken here, too: an index, and a
single number where elements are combined one by one. What needs a GPU is not seen: its own kernels, streams, memory.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

COUNT = 2
OWN = torch.device("cuda", 1)
"""The run's device. It is not the first, so what is put on "cuda" before the run has its device stands on another."""
CPU = torch.device("cpu")
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
COPIES = {"copy_", "_foreach_copy_"}
DEVICE, IS_CUDA = Tensor.device.__get__, Tensor.is_cuda.__get__  # type: ignore[attr-defined]
ABOUT_DEVICES = {
    DEVICE, IS_CUDA, Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.numpy, Tensor.__array__, Tensor.pin_memory,
    Tensor.new_tensor, Tensor.__deepcopy__, torch.device, torch._C._nn._parse_to, torch.tensor, torch.from_numpy,
    torch.frombuffer,
}  # fmt: skip


def place(tensor: Tensor) -> torch.device:
    """Where a tensor stands."""
    return getattr(tensor.untyped_storage(), "place", CPU)


def put(tensor: Tensor, device: torch.device) -> None:
    tensor.untyped_storage().place = device  # type: ignore[attr-defined]


def tensors(values: Iterable[Any]) -> list[Tensor]:
    """Those among values and in the lists among them."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors(value)
    return found


class Kernels(TorchDispatchMode):
    """What CUDA's kernels check, and where their results stand.

    around: what the torch function under way was called with; where that stands it makes tensors of its own.
    """

    around: tuple[Any, ...] = ()

    def __torch_dispatch__(self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = tensors(args) + (tensors(kwargs.values()) if kwargs else [])
        places = {place(tensor) for tensor in operands or tensors(self.around)}
        out = kernel(*args, **(kwargs or {}))
        if places <= {CPU} or (name := kernel._schema.name.removeprefix("aten::")) in COPIES:
            return out
        if not operands:  # of several, that which the function computes on
            places -= {CPU}
        device = one_place(kernel, name, args, operands) if len(places) > 1 else places.pop()
        generator = (kwargs or {}).get("generator")
        if generator is not None and generator.device.type != device.type:
            raise RuntimeError(f"{name}: expected a generator on {device}, found {generator.device}")
        for tensor in tensors([out]):
            put(tensor, device)
        return out


def one_place(kernel: Any, name: str, args: Any, operands: list[Tensor]) -> torch.device:
    """The device of operands that are not all in one place. Raises RuntimeError where CUDA would."""
    device = next(at for tensor in operands if (at := place(tensor)) != CPU)
    numbers = torch.Tag.pointwise in kernel.tags or name in INDEXED
    described = zip(args, kernel._schema.arguments, strict=False)
    written = {id(value) for value, told in described if told.alias_info and told.alias_info.is_write}
    indices = set(map(id, tensors([args[1]]))) if name in INDEXED and place(args[0]) == device else set[int]()
    for tensor in operands:
        taken = id(tensor) in indices or (numbers and tensor.dim() == 0 and id(tensor) not in written)
        if (at := place(tensor)) != device and not (at == CPU and taken):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {device} and {at}")
    return device


class Functions(TorchFunctionMode):
    """What a program asks torch about devices: to make a tensor on one, to move it there, to say where it is.

    used: the devices that something was put on; current: the number of the one that "cuda" means.
    """

    def __init__(self, kernels: Kernels):
        super().__init__()
        self.kernels, self.used, self.current = kernels, set[torch.device](), 0

    def named(self, value: Any) -> torch.device | None:
        """The device that a value names, if it names one."""
        if isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda", "meta"):
            value = torch.device(value)
        if not isinstance(value, torch.device):
            return None
        return torch.device("cuda", self.current) if value.type == "cuda" and value.index is None else value

    def here(self, value: Any) -> Any:
        """The value, with the CPU in the place of a device that is pretended."""
        device = self.named(value)
        return CPU if device is not None and device.type == "cuda" else value

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function not in ABOUT_DEVICES and "device" not in kwargs:
            return self.called(function, args, kwargs)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        at = CPU if first is None else place(first)
        if function == DEVICE and at != CPU:
            return at
        if function == IS_CUDA:
            return at != CPU
        if function in (Tensor.numpy, Tensor.__array__) and at != CPU:
            raise TypeError(f"can't convert {at} device type tensor to numpy; use Tensor.cpu() first")
        if function == Tensor.pin_memory:
            return first
        if function in (torch.device, torch._C._nn._parse_to):
            return function(*args, **kwargs)
        target, generator = self.target(function, at, args, kwargs), kwargs.get("generator")
        if target is not None and target.type == "cuda" and generator is not None and generator.device.type != "cuda":
            raise RuntimeError(f"{function.__name__}: expected a generator on {target}, found {generator.device}")
        if function == Tensor.cuda:
            function, args, kwargs = Tensor.clone, args[:1], {}
        out = self.called(function, [self.here(x) for x in args], {name: self.here(x) for name, x in kwargs.items()})
        return out if target is None or target.type == "meta" else self.moved(out, target, first)

    def called(self, function: Any, args: Any, kwargs: Any) -> Any:
        outer, self.kernels.around = self.kernels.around, (self.kernels.around, args, tuple(kwargs.values()))
        try:
            return function(*args, **kwargs)
        finally:
            self.kernels.around = outer

    def target(self, function: Any, at: torch.device, args: Any, kwargs: Any) -> torch.device | None:
        """Where the result is to stand, if the call says so."""
        if kwargs.get("device") is not None:
            return self.named(kwargs["device"])
        if function == Tensor.to:
            other = args[1] if len(args) > 1 else kwargs.get("other")
            return place(other) if isinstance(other, Tensor) else self.named(other)
        if function in (Tensor.__deepcopy__, Tensor.new_tensor):
            return at
        if function == Tensor.cuda:
            return self.named("cuda")
        return CPU if function in (Tensor.cpu, torch.tensor, torch.from_numpy, torch.frombuffer) else None

    def moved(self, out: Tensor, target: torch.device, source: Tensor | None) -> Tensor:
        self.used.add(target)
        if place(out) != target:
            if source is not None and source.untyped_storage()._cdata == out.untyped_storage()._cdata:
                out = out.clone()
            put(out, target)
        return out


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch, **more: Any) -> Iterator[Functions]:
    """Inside, the machine has the devices, and Lightning trains on OWN. more: further stand-ins of torch.cuda's."""
    functions = Functions(kernels := Kernels())
    by_device = torch._C._group_tensors_by_device_and_dtype

    def by_place(lists: Any, with_indices: bool = False) -> Any:
        """What the optimizers take together."""
        groups = by_device(lists, with_indices)
        return {(place(tensors(found[0])[0]), dtype): found for (_, dtype), found in groups.items()}

    def set_device(device: Any) -> None:
        functions.current = torch.device("cuda", device).index if isinstance(device, int) else device.index

    state = torch.zeros(16, dtype=torch.uint8)
    machine: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: COUNT,
        "current_device": lambda: functions.current,
        "set_device": set_device,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "max_memory_allocated": lambda device=None: 0,
        "get_device_name": lambda device=None: "pretended",
        "get_device_capability": lambda device=None: (8, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_rng_state": lambda device="cuda": state,
        "set_rng_state": lambda state, device="cuda": None,
        "get_rng_state_all": lambda: [state] * COUNT,
        "set_rng_state_all": lambda states: None,
    }
    with monkeypatch.context() as patched, kernels, functions:
        for name, stand_in in (machine | more).items():
            patched.setattr(torch.cuda, name, stand_in)
        for check in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):  # asks a driver
            patched.setattr(torch.optim.Optimizer, check, lambda self: None, raising=False)
        patched.setattr(torch._C, "_group_tensors_by_device_and_dtype", by_place)
        patched.setattr(CUDAAccelerator, "get_parallel_devices", staticmethod(lambda devices: [OWN]))
        yield functions
