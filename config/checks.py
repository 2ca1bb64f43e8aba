"""Checks of single values: each returns the value, or raises ValueError with the rule as a sentence.

Must never look at another field, a file or the environment. Used by `settings` as pydantic validators.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_WORD = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
# What YAML and JSON can carry on one line: no control characters, line ends, surrogates, non-characters.
_TEXT = re.compile("[\t\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]*")
_RESERVED_RESOURCES = frozenset({"cpu", "gpu", "memory", "object_store_memory"})
_RESERVED_ENV = "RAY_AUTH_MODE, RAY_AUTH_TOKEN*, RAY_USAGE_STATS_ENABLED"
_MARKS_WHY = (
    "grid-agent knows by it which processes a dead raylet has left, and ends those; "
    "set by hand it would name the processes of another"
)
_FORBIDDEN_ENV = {  # spelled as Ray reads them
    "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": (
        "such a raylet ends every process below it that it does not know, "
        "and so the raylet that a repair on its node has started"
    ),
    "RAY_RAYLET_PID": _MARKS_WHY,
    "RAY_NODE_ID": _MARKS_WHY,
}
# Ray's sockets are <temp dir>/session_<26 characters>_<pid>/sockets/plasma_store; Linux allows 107 bytes.
_TEMP_DIR_BYTES = 39


@dataclass(frozen=True)
class Matching:
    """A check that the whole value matches `pattern`."""

    pattern: str
    rule: str

    def __call__(self, value: str) -> str:
        """The value, if it matches."""
        if not re.fullmatch(self.pattern, value):
            raise ValueError(self.rule)
        return value


node_name = Matching(
    _WORD,
    "must be 1 to 63 letters, digits, dots, dashes or underscores, with a letter or digit at both ends",
)
cluster_name = Matching(
    r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,40}[A-Za-z0-9])?",
    "must be 1 to 42 letters, digits, dots, dashes or underscores, with a letter or digit at both ends: "
    "it becomes the name of a folder",
)
hours = Matching(
    r"([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]",
    'must be hours of a day in UTC, in quotes, such as "22:00-06:00"',
)
user_name = Matching(
    r"[A-Za-z_][A-Za-z0-9_.-]{0,31}",
    "must be a login name: 1 to 32 letters, digits, dots, dashes or underscores, not starting with a digit, "
    "dot or dash",
)
slack_channel = Matching(
    r"[CGD][A-Z0-9]{4,20}|#[^\s#@,:;/\\'\"<>&]{1,80}",
    "must be a channel id such as C0123456789, or a name such as #cluster-alerts (in quotes)",
)
variable_name = Matching(
    r"[A-Za-z_][A-Za-z0-9_]{0,127}",
    "must be the name of an environment variable: letters, digits and underscores, not starting with a digit",
)
_label_word = Matching(
    _WORD,
    "must be at most 63 letters, digits, dots, dashes or underscores, with a letter or digit at both ends",
)
_label_prefix = Matching(_DNS_NAME, "must have a domain name such as example.com before the slash")


def host(value: str) -> str:
    """An IPv4 or IPv6 address, or a host name as RFC 1123 has it."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        last = value.rpartition(".")[2]
        if len(value) > 253 or last.isdigit() or not re.fullmatch(_DNS_NAME, value):
            raise ValueError("must be an IPv4 address, an IPv6 address or a host name") from None
        return value
    if "%" in value:
        raise ValueError("must be an IPv6 address without a zone (no %)")
    if address.is_unspecified or address.is_multicast:
        raise ValueError("must be the address of one host, not a wildcard or multicast address")
    return value


def bind_host(value: str) -> str:
    """An address to listen on: like `host`, and the wildcards 0.0.0.0 and :: as well."""
    return value if value in {"0.0.0.0", "::"} else host(value)  # noqa: S104


def is_loopback(value: str) -> bool:
    """Whether a checked host can only be this machine."""
    try:
        return ipaddress.ip_address(value).is_loopback
    except ValueError:
        return value.lower() == "localhost"


def same_host(value: str) -> str:
    """The one spelling under which two ways to write a checked host compare equal."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return value.lower()


def path(value: str) -> str:
    """An absolute path, or one under the home folder."""
    if not value.startswith(("/", "~/")):
        raise ValueError("must be an absolute path, or one that starts with ~/")
    if not _TEXT.fullmatch(value) or len(value) > 1024:
        raise ValueError("must be a path of at most 1024 characters without control characters")
    return value


def temp_dir(value: str) -> str:
    """A folder short enough for the sockets that Ray puts below it."""
    if len(path(value).encode()) > _TEMP_DIR_BYTES:
        raise ValueError(
            f"must be at most {_TEMP_DIR_BYTES} bytes long: Ray puts sockets below it, "
            "and Linux allows their paths 107 bytes"
        )
    return value


def label_key(value: str) -> str:
    """A node label's key as Ray accepts it: a word, or `prefix/word`."""
    prefix, slash, word = value.rpartition("/")
    if prefix == "ray.io":
        raise ValueError("must not start with ray.io/: Ray sets those labels itself")
    if slash:
        _label_prefix(prefix)
        if len(prefix) > 253:
            raise ValueError("must have at most 253 characters before the slash")
    _label_word(word)
    return value


def label_value(value: str) -> str:
    """A node label's value as Ray accepts it: a word or nothing."""
    return _label_word(value) if value else value


def node_variable(value: str) -> str:
    """The name of an environment variable that a node may set."""
    upper = variable_name(value).upper()
    if upper in {"RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED"} or upper.startswith("RAY_AUTH_TOKEN"):
        raise ValueError(f"must not be one of {_RESERVED_ENV}: grid-agent sets them, the same on every node")
    if value in _FORBIDDEN_ENV:
        raise ValueError(f"must not be {value}: {_FORBIDDEN_ENV[value]}")
    return value


def line(value: str) -> str:
    """Text on one line."""
    if not _TEXT.fullmatch(value) or len(value) > 4096:
        raise ValueError("must be one line of at most 4096 characters without control characters")
    return value


def resource_name(value: str) -> str:
    """The name of a custom resource."""
    if value.lower() in _RESERVED_RESOURCES:
        raise ValueError("must not be CPU, GPU, memory or object_store_memory: those have keys of their own")
    if not re.fullmatch(r"[^\s,:{}\"'\\]{1,128}", value) or not _TEXT.fullmatch(value):
        raise ValueError("must be 1 to 128 characters without spaces, quotes and any of , : { } \\")
    return value


def whole(value: float) -> float:
    """A quantity of a custom resource: Ray starts a node with whole numbers only."""
    if not float(value).is_integer():
        raise ValueError(
            "must be a whole number: Ray refuses to start a node that offers a fraction of a resource"
        )
    return value


def url(value: str) -> str:
    """A base URL that a token may be sent to: https, or plain http to this machine."""
    rule = "must be a URL such as https://slack.com/api/ (plain http only to this machine)"
    try:
        parts = urlsplit(value)
        name, _ = parts.hostname or "", parts.port
        host(name)
    except ValueError:
        raise ValueError(rule) from None
    secure = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(name))
    extra = parts.username is not None or parts.password is not None or parts.query or parts.fragment
    if not secure or extra or not re.fullmatch(r"[!-~]{1,512}", value):
        raise ValueError(rule)
    return value


def watch_url(value: str) -> str:
    """A URL that is only called: http or https; nothing secret is sent there."""
    rule = "must be a URL such as https://hc-ping.com/your-check (http or https)"
    try:
        parts = urlsplit(value)
        name, _ = parts.hostname or "", parts.port
        host(name)
    except ValueError:
        raise ValueError(rule) from None
    wrong = parts.scheme not in {"http", "https"} or parts.username is not None or parts.fragment
    if wrong or not re.fullmatch(r"[!-~]{1,512}", value):
        raise ValueError(rule)
    return value


def bracketed(host: str) -> str:
    """The host as it stands before a `:port`: an IPv6 address goes in brackets (RFC 3986)."""
    return f"[{host}]" if ":" in host else host
