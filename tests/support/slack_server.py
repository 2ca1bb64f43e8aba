"""A server that behaves as Slack does, for tests and for trying things out without Slack.

    python -m tests.support.slack_server --port 0 --token xoxb-test

prints its base URL; `GET /messages` shows what was posted, `POST /mode` with the arguments of `fail` as JSON
makes it misbehave. What it checks and answers follows https://docs.slack.dev/reference/methods.
"""

import argparse
import asyncio
import copy
import json
import threading
import time
from contextlib import closing, suppress
from typing import Any, Self

from aiohttp import web

Record = dict[str, Any]
MODES = ["ok", "drop_before", "drop_after_accept", "stall", "http500", "bad_json", "ok_false", "rate_limit"]


class SlackServer:
    """Runs in its own thread with its own event loop; use as a context manager.

    `token` is the one it accepts, `channels` maps names to ids; all of its public attributes may be changed
    while it runs.
    """

    def __init__(self, token: str = "xoxb-test", port: int = 0, channel_id: str = "C0123456789") -> None:
        self.token = token
        self.channels = {"grid-alerts": channel_id}
        self.dedupes = False  # whether it honours client_msg_id, which Slack promises nowhere
        self.history_scope = True  # whether the token may read the channel
        self.base_url = ""
        self._port = port
        self._lock = threading.RLock()
        self._messages: list[Record] = []
        self._requests: list[Record] = []
        self._posted: dict[str, Record] = {}  # client_msg_id -> what was answered
        self._count = 0
        self.heal()

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10), "the fake Slack did not start"
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    @property
    def messages(self) -> list[Record]:
        """First messages: channel, ts, text, blocks, edits (text, blocks, at) and replies.

        A reply with `broadcast` is shown in the channel, too.
        """
        with self._lock:
            return copy.deepcopy(self._messages)

    @property
    def requests(self) -> list[Record]:
        """Every call in order: method, body, at (monotonic seconds), answer (error, "ok" or the mode)."""
        with self._lock:
            return copy.deepcopy(self._requests)

    def fail(
        self,
        mode: str,
        times: int | None = None,
        error: str = "",
        retry_after_s: float = 1,
        replies_only: bool = False,
    ) -> None:
        """Misbehave from now on as one of MODES says, for `times` calls (None: until `heal`)."""
        if mode not in MODES:
            raise ValueError(f"no such mode: {mode}")
        with self._lock:
            self._mode, self._times, self._error, self._retry_after_s = mode, times, error, retry_after_s
            self._replies_only = replies_only

    def heal(self) -> None:
        self.fail("ok")

    def ok_false(self, error: str, times: int | None = None) -> None:
        self.fail("ok_false", times, error)

    def rate_limit(self, times: int | None = None, retry_after_s: float = 1) -> None:
        self.fail("rate_limit", times, "", retry_after_s)

    def delete(self, ts: str) -> None:
        """A person deletes a message and with it the thread."""
        with self._lock:
            self._messages = [message for message in self._messages if message["ts"] != ts]

    def _serve(self, ready: threading.Event) -> None:
        async def main() -> None:
            app = web.Application()
            app.router.add_post("/api/{method}", self._api)
            app.router.add_post("/mode", self._set_mode)
            app.router.add_get("/messages", self._show)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", self._port).start()
                self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/api/"
                ready.set()
                await self._stopping.wait()
            finally:
                await runner.cleanup()

        with closing(self._loop) as loop:
            loop.run_until_complete(main())

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self.messages)

    async def _set_mode(self, request: web.Request) -> web.Response:
        self.fail(**await request.json())
        return web.json_response({"ok": True})

    def _take_mode(self, body: Record) -> tuple[str, str, float]:
        with self._lock:
            if self._replies_only and "thread_ts" not in body:
                return "ok", "", 0.0
            taken = self._mode, self._error, self._retry_after_s
            self._times = None if self._times is None else self._times - 1
            if self._times == 0:
                self.heal()
        return taken

    async def _api(self, request: web.Request) -> web.Response:
        method, body = request.match_info["method"], await _body(request)
        mode, error, wait_s = self._take_mode(body)
        log = {"method": method, "body": body, "at": time.monotonic(), "answer": mode}
        with self._lock:
            self._requests.append(log)
        if mode == "drop_after_accept":
            self._handle(request, method, body)
        if mode == "stall":
            await self._stopping.wait()
        if mode in {"stall", "drop_before", "drop_after_accept"}:
            request.transport.abort()
            return web.Response()
        if mode == "http500":
            return web.Response(status=500, text="<html>oops</html>", content_type="text/html")
        if mode == "bad_json":
            return web.Response(text='{"ok": tru', content_type="application/json")
        if mode == "rate_limit":
            return web.json_response(_no("ratelimited"), status=429, headers={"Retry-After": f"{wait_s:g}"})
        answer = _no(error) if mode == "ok_false" else self._handle(request, method, body)
        with self._lock:
            log["answer"] = answer.get("error", "ok")
        return web.json_response(answer)

    def _handle(self, request: web.Request, method: str, body: Record) -> Record:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ") or body.get("token")
        if bearer != self.token:
            return _no("invalid_auth" if bearer else "not_authed")
        with self._lock:
            if method == "chat.postMessage":
                return self._post(body)
            if method == "chat.update":
                return self._update(body)
            if method in {"conversations.history", "conversations.replies"}:
                return self._read(method, body)
        return (
            {"ok": True, "user": "grid-agent", "team": "Lab", "url": "https://lab.slack.test/"}
            if method == "auth.test"
            else _no("unknown_method")
        )

    def _post(self, body: Record) -> Record:
        channel = str(body.get("channel")).removeprefix("#")
        channel_id = self.channels.get(channel, channel)
        if channel_id not in self.channels.values():
            return _no("channel_not_found")
        if error := _content_error(body):
            return _no(error)
        key = body.get("client_msg_id")
        if self.dedupes and key in self._posted:
            return self._posted[key]
        self._count += 1
        ts = f"{int(time.time())}.{self._count % 1_000_000:06d}"
        message = {"ts": ts, "channel": channel_id, "edits": [], **_content(body)}
        if "thread_ts" in body:
            if (thread := self._find(self._messages, channel_id, body["thread_ts"])) is None:
                return _no("thread_not_found")
            thread["replies"].append({**message, "broadcast": bool(body.get("reply_broadcast"))})
        else:
            self._messages.append({**message, "replies": []})
        answer = {
            "ok": True,
            "channel": channel_id,
            "ts": ts,
            "message": {"text": message["text"]},
        }
        self._posted |= {key: answer} if key else {}
        return answer

    def _read(self, method: str, body: Record) -> Record:
        """Messages of the channel, newest first, or of one thread, oldest first; in pages of `limit`."""
        channel_id = body.get("channel")
        if not self.history_scope:
            return _no("missing_scope")
        if channel_id not in self.channels.values():
            return _no("channel_not_found")
        found = [message for message in self._messages if message["channel"] == channel_id][::-1]
        if method == "conversations.replies":
            thread = self._find(found, channel_id, body.get("ts"))
            if thread is None:
                return _no("thread_not_found")
            found = [thread, *thread["replies"]]
        found = [message for message in found if float(message["ts"]) >= float(body.get("oldest", 0))]
        first, limit = int(body.get("cursor") or 0), int(body.get("limit", 100))
        shown = [
            {k: message[k] for k in ("ts", "text", "blocks")} for message in found[first : first + limit]
        ]
        more = str(first + limit) if first + limit < len(found) else ""
        return {"ok": True, "messages": shown, "response_metadata": {"next_cursor": more}}

    def _update(self, body: Record) -> Record:
        channel_id, ts = body.get("channel"), body.get("ts")
        if channel_id not in self.channels.values():  # a name is refused here
            return _no("channel_not_found")
        every = self._messages + [reply for message in self._messages for reply in message["replies"]]
        if (message := self._find(every, channel_id, ts)) is None:
            return _no("message_not_found")
        if error := _content_error(body):
            return _no(error)
        message |= _content(body)
        message["edits"].append({**_content(body), "at": time.monotonic()})
        return {"ok": True, "channel": channel_id, "ts": ts, "text": message["text"]}

    @staticmethod
    def _find(messages: list[Record], channel_id: str, ts: Any) -> Record | None:
        return next((one for one in messages if one["ts"] == ts and one["channel"] == channel_id), None)


def _no(error: str) -> Record:
    return {"ok": False, "error": error}


async def _body(request: web.Request) -> Record:
    """The arguments of a call, from JSON or from a form (where `blocks` is JSON in a field)."""
    if request.content_type == "application/json":
        return dict(await request.json())
    form: Record = dict(await request.post())
    if "blocks" in form:
        form["blocks"] = json.loads(form["blocks"])
    return form


def _content(body: Record) -> Record:
    return {"text": body.get("text", ""), "blocks": body.get("blocks", [])}


def _content_error(body: Record) -> str | None:
    text, blocks = _content(body).values()
    if len(text) > 40_000 or not (text or blocks):
        return "msg_too_long" if text else "no_text"
    return None if len(blocks) <= 50 and all(map(_good_block, blocks)) else "invalid_blocks"


def _good_block(block: Record) -> bool:
    either = ("mrkdwn", "plain_text")
    kinds = {"header": (either[1:], 150), "section": (either, 3000), "context": (either, 3000)}
    kind, limit = kinds.get(block.get("type", ""), ((), 0))
    texts = block.get("elements") or [block.get("text", {})]
    return all(text.get("type") in kind and 1 <= len(text["text"]) <= limit for text in texts)


def main() -> None:
    parser = argparse.ArgumentParser(description="A server that behaves as Slack does.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token", default="xoxb-test")
    asked = parser.parse_args()
    with SlackServer(asked.token, asked.port) as server:
        print(server.base_url, flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
