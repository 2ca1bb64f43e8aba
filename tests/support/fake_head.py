"""A head for the keeper without a process: which parts are there, which answer, and what was asked of it."""

import threading

ALL = ("gcs", "raylet", "dashboard")


class FakeHead:
    """Its attributes may be changed while a keeper looks at it; `looks` counts."""

    def __init__(self, *there: str, silent: tuple[str, ...] = ()) -> None:
        self.parts, self.silent = set(there), set(silent)
        self.asked: set[str] = set()
        self.restarted: list[str] = []
        self.looks = 0

    def find(self) -> None:
        self.looks += 1

    def there(self, name: str) -> bool:
        return name in self.parts

    def gcs_answers(self) -> bool:
        self.asked.add("gcs")
        return "gcs" not in self.silent

    def raylet_answers(self) -> bool:
        self.asked.add("raylet")
        return "raylet" not in self.silent

    def restart(self, name: str) -> str | None:
        self.restarted.append(name)
        return None

    def wait(self, seconds: float) -> None:
        threading.Event().wait(min(seconds, 0.02))
