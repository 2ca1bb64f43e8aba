"""Text for people: the health report and incidents as lines. Pure strings; unwrapped, so that pipes work."""

from collections.abc import Iterable, Sequence
from typing import Any

TAIL = 8  # lines of each log on a screen; -o json has all that is kept


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligned columns, two spaces between; the last column as long as it is."""
    all_rows = [tuple(head), *(tuple(r) for r in rows)]
    widths = [max(len(r[i]) for r in all_rows) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in all_rows]


def health(body: dict[str, Any]) -> list[str]:
    """The health report: one line of summary, a table of nodes, what the observer doubts."""
    alive = sum(n["state"] == "ALIVE" for n in body["nodes"])
    open_incidents = body["incidents"]["open"]
    alive_of = f"{alive} of {len(body['nodes'])} nodes ALIVE"
    age = f"{body['age_s']:.1f} s old"
    lines = [f"{body['status']}: {alive_of}, {open_incidents} open incidents, mode {body['mode']}, {age}"]
    lines += table(
        ("NODE", "HOST", "ROLE", "STATE", "SINCE", "HEARTBEAT", "GPUS", "CAUSE", "ACTION"),
        (_node(node) for node in body["nodes"]),
    )
    if body["paused"]:
        lines.append(f"paused by {_said(body['paused'])}; nothing is repaired")
    if body.get("breaker"):
        lines.append(f"breaker open since {body['breaker']['since']}: {body['breaker']['why']}")
    if body["observer"]["status"] != "pass":
        lines.append(f"observer {body['observer']['status']}: {body['observer'].get('detail', '')}")
    return lines


def _said(word: dict[str, Any]) -> str:
    until = f" until {word['until']}" if word["until"] else ""
    return f"{word['by']}{until}: {word['reason']}"


def _node(node: dict[str, Any]) -> tuple[str, ...]:
    beat, gpus = node["heartbeat"], node["gpus"]
    heartbeat = "-" if beat["rtt_ms"] is None else f"{beat['rtt_ms']:.1f} ms, {beat['age_s']:.1f} s ago"
    counts = "/".join("?" if gpus[k] is None else str(gpus[k]) for k in ("expected", "registered", "seen"))
    return (
        node["name"],
        node["host"],
        node["role"],
        node["state"],
        node["since"],
        heartbeat,
        counts,
        node["cause"] or "-",
        node["action"] or "-",
    )


def incidents(body: dict[str, Any]) -> list[str]:
    """One line per incident, newest first."""
    if not body["incidents"]:
        return ["no incidents"]
    rows = (
        (str(i["id"]), i["phase"], i["cause"], ", ".join(i["nodes"]), i["opened_at"], i["resolved_at"] or "-")
        for i in body["incidents"]
    )
    return table(("ID", "PHASE", "CAUSE", "NODES", "OPENED", "RESOLVED"), rows)


def incident(body: dict[str, Any]) -> list[str]:
    """One incident with its whole timeline."""
    lines = [f"incident {body['id']}: {', '.join(body['nodes'])}: {body['cause']}, {body['phase']}"]
    lines += [f"  {step['at']}  {step['text']}" for step in body["steps"]]
    for bundle in body.get("bundles", ()):
        lines += _bundle(bundle)
    return lines


def _bundle(body: dict[str, Any]) -> list[str]:
    """What a host showed before anything was done about it."""
    host = body.get("host") or {}
    pressure = ", ".join(f"{kind} {some:g} %" for kind, some in (host.get("pressure") or {}).items())
    memory = f"memory {host.get('mem_available_mb')} of {host.get('mem_total_mb')} MB free"
    lines = [f"{body['node']} as it was seen at {body['at']}: load {host.get('load1')}, {memory}"]
    lines += [f"  waiting for {pressure}"] if pressure else []
    gpus = (body.get("probe") or {}).get("gpus_seen")
    lines += [f"  {gpus} GPUs seen"] if gpus is not None else []
    lines += [f"  kernel    {line}" for line in body.get("kernel", ())]
    for file in body.get("files", ()):
        lines += [f"  {file['path']}", *(f"    {line}" for line in file["tail"].splitlines()[-TAIL:])]
    return lines


def why(body: dict[str, Any]) -> list[str]:
    """One node on one screen."""
    cause = f", cause: {body['cause']}" if body["cause"] else ""
    lines = [f"{body['name']} on {body['host']}: {body['state']} since {body['since']}{cause}"]
    lines += [f"  seen      {text}" for text in body["seen_now"].values()]
    lines += [f"  note      {fact['text']}" for fact in body["facts"] if fact["witness"] == "connections"]
    lines += [f"  rests on  {text}" for text in body["evidence"]]
    for attempt in body["attempts"]:
        outcome = {None: "under way", True: "ok", False: "failed"}[attempt["ok"]]
        lines.append(f"  attempt   {attempt['number']} at {attempt['at']} on {attempt['run_on']}: {outcome}")
    lines += [f"  GPU       {text}" for text in body.get("gpus_seen", ())]
    if body["refused"]:
        lines.append(f"  refused   {body['refused']}")
    repairs = body["repairs"]
    if repairs["tries"] or repairs["deaths"]["used"]:
        counts = (f"{k} {repairs[k]['used']} of {repairs[k]['limit']}" for k in ("node", "cluster", "deaths"))
        lines.append(f"  limits    {', '.join(counts)}; next rung: {repairs['rung']}")
    if body["next_attempt_at"]:
        lines.append(f"  next      attempt at {body['next_attempt_at']}")
    if body["incident"]:
        lines += ["last incident:", *(f"  {line}" for line in incident(body["incident"]))]
    return lines if len(lines) > 1 else [*lines, "  nothing speaks against it, and it has had no incident"]
