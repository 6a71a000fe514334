"""A stateful service: it counts, and remembers."""

from solo_fast import Service


class Counter(Service):
    """Counts. Its state lives as long as the service does."""

    def init(self):
        self.value = 0

    def increment(self, by: int = 1) -> int:
        self.value += by
        return self.value

    def get(self) -> int:
        return self.value

    def reset(self) -> int:
        self.value = 0
        return self.value
