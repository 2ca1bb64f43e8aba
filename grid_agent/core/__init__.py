"""Pure decisions: no ray, asyncio, sockets, subprocess or clock in here."""
