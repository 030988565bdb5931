"""What the arithmetic runs on: device, precision, threads and the seeds of everything random."""

import ctypes
import hashlib
import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field

from tasks.errors import SetupError
from tasks.sections import Section

Module = TypeVar("Module", bound=torch.nn.Module)

# mallopt(3): the names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_THRESHOLD = 2**31 - 1


class ComputeParams(Section):
    """Section `compute` of params.yaml.

    Attributes:
        seed: Every random number follows from it.
        threads: CPU threads of torch. Another number sums in another order: same accuracy, other
            bits. On small networks one is as fast as two, and does not collapse beside other work.
        device: `auto` takes a CUDA device where there is one.
        precision: `auto` computes in bfloat16 where the device multiplies it in hardware (AMX,
            CUDA from compute capability 8.0), else in float32.
        time_limit_minutes: How long one stage, the data stage too, may take; then it is stopped,
            and its checkpoint kept. No limit by default. It decides no bit, and so is in no stage's
            key.
    """

    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    threads: Annotated[int, Field(ge=1)] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    time_limit_minutes: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True)
class Compute:
    """The settings of `ComputeParams`, resolved for this machine."""

    seed: int
    threads: int
    device: torch.device
    bf16: bool

    @classmethod
    def resolve(cls, params: ComputeParams) -> "Compute":
        """Settles `auto` for this machine.

        Raises:
            SetupError: CUDA is asked for and there is none.
        """
        if params.device == "cuda" and not torch.cuda.is_available():
            raise SetupError(
                "compute.device is 'cuda', but torch finds no CUDA device; set it to 'auto'"
            )
        cuda = params.device != "cpu" and torch.cuda.is_available()
        device = torch.device("cuda" if cuda else "cpu")
        bf16 = params.precision == "bf16" or (
            params.precision == "auto" and _has_bf16_units(device)
        )
        return cls(params.seed, params.threads, device, bf16)

    def start(self) -> None:
        """Sets threads, deterministic kernels and the global seed of this process."""
        torch.set_num_threads(self.threads)
        torch.set_deterministic_debug_mode("warn")
        # Filling every new tensor with NaN finds kernels that read what they never wrote; it costs
        # a tenth of the speed and changes no result.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        torch.manual_seed(self.seed)
        _keep_freed_memory()

    def generator(self, *purpose: str) -> torch.Generator:
        """A CPU generator whose seed follows from the run's seed and a purpose."""
        text = "\n".join((str(self.seed), *purpose))
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
        return torch.Generator().manual_seed(seed)

    def member(self, number: int) -> "Compute":
        """The same for another member of an ensemble: number 0 is this one itself."""
        if not number:
            return self
        seed = int(torch.randint(2**53, (1,), generator=self.generator("member", str(number))))
        return replace(self, seed=seed)

    def place(self, module: Module) -> Module:
        """Moves a module to the device, channels-last (bf16 without it falls below fp32)."""
        return laid_out(module.to(self.device), torch.channels_last)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision where it is on."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def describe(self) -> dict[str, Any]:
        """What decides bits, as it enters stage keys and lineage records."""
        cuda = self.device.type == "cuda"
        return {
            "machine": platform.machine(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "precision": "bf16" if self.bf16 else "fp32",
            "threads": self.threads,
            "seed": self.seed,
        }


def _has_bf16_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_amx_tile_supported())  # noqa: SLF001 - torch has no public name for it


def _keep_freed_memory() -> None:
    """Stops glibc from giving every large activation back to the kernel and faulting it in again.

    That made steps a tenth slower (ResNet-8, 32×32). Other C libraries go on as they do.
    """
    library = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if library is not None:
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)
        library.mallopt(M_TRIM_THRESHOLD, LARGEST_THRESHOLD)


def laid_out(module: Module, memory_format: torch.memory_format) -> Module:
    """The module with its weights in a memory format, in place."""
    return module.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue] - in torch's docs, not in its stubs
