"""Builds the stand-in for NVIDIA's libraries with the C compiler, and writes the script that it plays."""

import subprocess
import time
from pathlib import Path

SOURCE = Path(__file__).with_name("standin.c")
UUIDS = ("GPU-11111111-aaaa-4aaa-8aaa-000000000000", "GPU-22222222-bbbb-4bbb-8bbb-000000000001")
BUSES = ("0000:81:00", "0000:c1:00")
GPU = {"name": "NVIDIA-Standin", "memory": 81920}


class Standin:
    """A folder with libnvidia-ml.so.1 and libcuda.so.1, and the GPUs that they show.

    Put `env` into the environment of whatever shall see them; change the GPUs at any time with `set`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "script"
        self.kernel_log = folder / "kmsg"
        library = folder / "libnvidia-ml.so.1"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", library, SOURCE],
            check=True,
        )
        (folder / "libcuda.so.1").symlink_to(library)
        self.fresh()

    @property
    def env(self) -> dict[str, str]:
        """What makes a process load the stand-in."""
        return {"LD_LIBRARY_PATH": str(self.folder), "NVML_STANDIN": str(self.script)}

    def fresh(self) -> None:
        """As new, the kernel log too: for readers that are not started yet."""
        self.kernel_log.write_text("")
        self._records = 0
        self.reset()

    def reset(self) -> None:
        """Two healthy GPUs and nothing else."""
        self._lines: dict[str, str] = {}
        self._events: list[str] = []
        self._gpus = [
            {**GPU, "uuid": uuid, "bus": bus.split(":")[1]} for uuid, bus in zip(UUIDS, BUSES, strict=True)
        ]
        self._write()

    def set(self, gpu: int | None = None, **values: str | int) -> None:
        """Change a GPU (uuid=, state=, ecc=, ...), or with no GPU the library (init=, hang=, slow=, ...)."""
        if gpu is None:
            self._lines |= {key: str(value) for key, value in values.items()}
        else:
            self._gpus[gpu] |= values  # type: ignore[arg-type]
        self._write()

    def add(self, uuid: str, bus: str) -> None:
        """One more GPU."""
        self._gpus.append({**GPU, "uuid": uuid, "bus": bus})
        self._write()

    def event(self, gpu: int, xid: int) -> None:
        """An XID event of NVML."""
        self._events.append(f"event {len(self._events) + 1} {gpu} {xid}")
        self._write()

    def kernel(self, text: str, at_us: int | None = None) -> None:
        """A record of the kernel log, in microseconds since the boot: now."""
        self._records += 1
        at_us = time.monotonic_ns() // 1000 if at_us is None else at_us
        with self.kernel_log.open("a") as file:
            file.write(f"4,{self._records},{at_us},-;{text}\n")

    def _write(self) -> None:
        lines = [f"{key} {value}" for key, value in self._lines.items()] + self._events
        for index, gpu in enumerate(self._gpus):
            lines.append(f"gpu {index} " + " ".join(f"{k}={v}" for k, v in gpu.items()))
        fresh = self.script.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.replace(self.script)
