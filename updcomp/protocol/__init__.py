"""Rounds: the server makes an update, its bytes go to a device of its own process, and come back as a model."""

from updcomp.protocol.device import Copy, Device, device_process, load, save
from updcomp.protocol.rounds import NothingSentWarning, Plan, Round, Stage, deliver, replay, run_round, run_rounds

__all__ = [
    "Copy",
    "Device",
    "NothingSentWarning",
    "Plan",
    "Round",
    "Stage",
    "deliver",
    "device_process",
    "load",
    "replay",
    "run_round",
    "run_rounds",
    "save",
]
