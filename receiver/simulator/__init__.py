"""The providers' side of the story: eight wire protocols, real files, and every fault that can be had."""

from receiver.simulator.app import Simulator
from receiver.simulator.ledger import Ledger
from receiver.simulator.scenario import Fault, Outcome, Scenario
from receiver.simulator.serving import Served, serve_simulator

__all__ = ["Fault", "Ledger", "Outcome", "Scenario", "Served", "Simulator", "serve_simulator"]
