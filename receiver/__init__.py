"""Receiver: submits AI generation jobs, brings every one of them home, and tells your handlers, once."""

__version__ = "0.1.0"
