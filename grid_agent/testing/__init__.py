"""A little world to run the core in: hosts, raylets and a GCS on a virtual clock, no Ray and no real time.

`SimulatedCluster` turns the truth of its world into the events of `core.messages` and carries out the
orders that `core.step` gives; the same seed gives the same night. It must never decide what the core
decides. Called by the tests, and by whoever wants to try a policy on a bad day.
"""

from grid_agent.testing.clock import VirtualClock
from grid_agent.testing.cluster import Found, SimulatedCluster
from grid_agent.testing.hosts import Chances, Host, Process
from grid_agent.testing.journal import MemoryJournal

__all__ = ["Chances", "Found", "Host", "MemoryJournal", "Process", "SimulatedCluster", "VirtualClock"]
