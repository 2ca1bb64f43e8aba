"""What `validate` asks by HTTP: Ray's dashboard, Ray Serve, what a stranger is told, the agent."""

from collections.abc import Mapping
from typing import Any

import httpx

from grid_agent.validate_report import Check

HTTP_S = 5.0
STALE_S = 10.0
APP = "grid-agent"


async def dashboard(http: httpx.AsyncClient, url: str, token: str | None) -> Check:
    """Ray's dashboard answers, with our token, as Ray does."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = await http.get(f"{url}/api/version", headers=headers)
    except httpx.HTTPError as error:
        said = str(error) or type(error).__name__
        return Check(
            "dashboard", "fail", f"nobody answers at {url} ({said}): is the head up?", unreachable=True
        )
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Check(
            "dashboard", "fail", f"{url} refuses our token: was the cluster started by somebody else?"
        )
    if answer.status_code != httpx.codes.OK:
        return Check("dashboard", "warn", f"{url} answers {answer.status_code}")
    try:
        version = answer.json().get("ray_version", "of unknown version")
    except (ValueError, AttributeError):
        return Check("dashboard", "fail", f"{url} answers, and not as Ray does: is ray.dashboard_port right?")
    return Check("dashboard", "pass", f"{url}, Ray {version}")


async def application(http: httpx.AsyncClient, url: str, token: str | None) -> Check:
    """The application is deployed, and Ray Serve says that it runs."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = await http.get(f"{url}/api/serve/applications/", headers=headers)
        apps = answer.json().get("applications", {}) if answer.status_code == httpx.codes.OK else None
        app = apps.get(APP) if apps is not None else None
        status, message = (app["status"], app.get("message") or "") if app else (None, "")
    except (httpx.HTTPError, ValueError, AttributeError, KeyError, TypeError) as error:
        text = f"Ray Serve could not be asked ({type(error).__name__}): see the line of the dashboard"
        return Check("application", "fail", text)
    if apps is None:
        return Check("application", "fail", f"Ray Serve answers {answer.status_code}")
    if status is None:
        return Check("application", "fail", f"{APP} is not deployed: start.py deploys it")
    if status != "RUNNING":
        return Check("application", "fail", f"{APP} is {status}: {message or 'see serve status'}")
    return Check("application", "pass", f"{APP} is RUNNING")


async def strangers(http: httpx.AsyncClient, url: str, auth: str | None, *, local: bool) -> Check:
    """What a request without a token comes to, beside what the file says (`auth`; None: there is no file)."""
    try:
        answer = await http.get(f"{url}/api/serve/applications/")
    except httpx.HTTPError as error:
        return Check("auth", "fail", f"could not be tried: {error or type(error).__name__}", unreachable=True)
    code = answer.status_code
    if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        text = f"a request without a token is refused ({code})"
        if auth == "disabled":
            return Check("auth", "fail", f"{text}, but the file says disabled: run stop.py, start.py")
        return Check("auth", "pass", text)
    text = f"a request without a token was answered ({code})"
    if auth == "token":
        return Check("auth", "fail", f"{text}: run stop.py, start.py")
    where = " on this machine" if local else ""
    risk = f"whoever reaches Ray's ports can run code{where}"
    return Check("auth", "pass" if local else "warn", f"{text}: {risk}")


async def health(
    http: httpx.AsyncClient, agent: str, token: str | None
) -> tuple[list[Check], Mapping[str, Any] | None]:
    """The agent's own report, and what is to be said of it."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = await http.get(f"{agent}/cluster/health", headers=headers)
        body = answer.json()
        status, age_s, still_open = body["status"], float(body["age_s"]), body["incidents"]["open"]
        doubts = body["observer"].get("detail", "")
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        text = f"no health report at {agent} ({type(error).__name__}): nobody heals until start.py deploys it"
        return [Check("agent", "fail", text, unreachable=True)], None
    text = f"{agent} says {status}"
    within_s = body["observer"].get("silence_suspected_within_s")
    if within_s is not None:
        text += f"; crashes are news at once, silence is suspected within {within_s:g} s"
    fresh = "is fresh" if age_s <= STALE_S else "is stale: its loop hangs; start.py --redeploy"
    return [
        Check("agent", status, f"{text}{'; ' + doubts if doubts else ''}"),
        Check("agent age", "pass" if age_s <= STALE_S else "fail", f"{age_s:.1f} s, which {fresh}"),
        Check(
            "incidents",
            "warn" if still_open else "pass",
            f"{still_open} open" + (": grid-agent incidents tells them" if still_open else ""),
        ),
    ], body
