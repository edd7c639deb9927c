"""Clients of `bfr serve`."""

from bfr.runtime.client.clients import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
