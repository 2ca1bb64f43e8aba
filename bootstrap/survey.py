"""What runs of a cluster before anything is done: raylets, agent, and the settings they were started with.

Looks only; both `start` and `stop` begin with it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bootstrap import health, machine, ownership, ports, state, store
from bootstrap.plan import Found, Here
from bootstrap.reach import Raylet, Reach
from bootstrap.store import NOTHING_KEPT, Store
from config import loader
from config.settings import Settings


@dataclass(frozen=True, slots=True)
class Survey:
    """One look. `settings` are those that what runs was started with, None when nothing says so.

    `strangers` are Ray processes at the cluster's address that are not of it, `gcs` whether its own GCS runs.
    `store` is what the last head's GCS kept on disk.
    """

    here: Here
    reach: Reach
    record: Mapping[str, Any] | None
    settings: Settings | None
    raylets: Mapping[str, Raylet]
    found: Found
    strangers: tuple[ownership.Process, ...] = ()
    gcs: bool = False
    store: Store = NOTHING_KEPT

    @property
    def known(self) -> bool:
        """Whether anything says that this cluster runs, or did."""
        return bool(self.raylets or self.gcs or (self.record or {}).get("session_dir"))

    @property
    def head(self) -> Raylet | None:
        """The head's raylet, if it runs."""
        return next((raylet for raylet in self.raylets.values() if raylet.head), None)


def survey(settings: Settings, environ: Mapping[str, str], *, fresh: bool = False) -> Survey:
    """Look at every host, at the state folder and at the agent.

    Args:
        settings: The cluster file.
        environ: This process's environment.
        fresh: A head is not to go on from what the last one kept.

    Returns:
        What was seen. The GCS address is the running head's own, else the recorded one while raylets of it
        are left, else the one a new head will have.
    """
    here = machine.here(settings, environ)
    record = state.read_record(here.state)
    recorded = _recorded(here)
    reach = Reach(settings, here.gcs_address, os.getuid(), here.state, former=recorded)
    proof = ownership.Proof(settings, recorded, record or {}, os.getuid())
    head = next(filter(proof.head, reach.heads()), None)
    addresses = [head.gcs_address if head else None, (record or {}).get("gcs_address"), here.gcs_address]
    for address in dict.fromkeys(filter(None, addresses)):
        reach.gcs_address = address
        owned = proof.at(address, reach.everyone())
        if owned.raylets:
            break
    raylets = owned.raylets
    head_runs = settings.head.name in raylets
    if raylets:
        here = replace(here, gcs_address=reach.gcs_address) if head_runs else here
    kept = store.look(here.state.gcs, store.owner(settings.cluster, here.gcs_address))
    found = Found(
        running=frozenset(raylets),
        store=kept.usable and not fresh and not head_runs,
        app_answers=head_runs and _answers(settings, here),
        client_port=ports.client_port(),
    )
    return Survey(here, reach, record, recorded, raylets, found, owned.strangers, owned.gcs, kept)


def token(settings: Settings, here: Here) -> str | None:
    """The token for the agent's API, if there is one yet."""
    path = Path(settings.http.token_file).expanduser() if settings.http.token_file else here.state.api_token
    return (state.read_text(path) or "").strip() or None


def _answers(settings: Settings, here: Here) -> bool:
    return health.Agent(settings, token(settings, here)).health() is not None


def _recorded(here: Here) -> Settings | None:
    text = state.read_text(here.state.settings)
    if text is None:
        return None
    try:
        return loader.loads(text, str(here.state.settings))
    except loader.ConfigError:
        return None
