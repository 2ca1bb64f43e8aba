"""What OpenSSH's client says when there is no answer, what that means, and what to do about it."""

from typing import Any

# What OpenSSH says -> what it means. The first that matches counts, so the more telling ones come first.
MESSAGES = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "host_key_changed"),
    ("Host key verification failed", "host_key_unknown"),
    ("Permission denied", "key_refused"),
    ("Too many authentication failures", "key_refused"),
    ("Could not resolve hostname", "unresolved"),
    ("No route to host", "no_route"),
    ("Network is unreachable", "no_route"),
    ("Host is unreachable", "no_route"),
    ("Connection refused", "refused"),
    ("not responding", "disconnected"),
    ("timed out", "connect_timeout"),
)
ADVICE = {
    "host_key_changed": """The host shows another key than the one known. If the machine was set up anew,
        replace its line in the known hosts file (`ssh-keygen -R`); if not, somebody may be in between.""",
    "host_key_unknown": """The host's key is not in the known hosts file. Compare its fingerprint on the host
        itself, then add it, for example with `ssh-keyscan`.""",
    "key_refused": """The host does not accept this user with this key. Check ssh.user and ssh.key_file (mode
        600), and that the public key is in ~/.ssh/authorized_keys there.""",
    "unresolved": "This name is unknown here. Correct `host`, or give the address.",
    "no_route": "Nothing answers at this address. Check that the machine and its link are up.",
    "refused": "The machine is up, but nothing listens on this port. Check that sshd runs, and ssh.port.",
    "connect_timeout": "No connection in time. The machine is down, or a firewall drops the packets.",
    "disconnected": "The connection ended without an answer. What was done there is not known: look again.",
    "command_missing": "There is no python3 for this user on the host. Install python3, 3.9 or newer.",
    "python_too_old": "The host's python3 is older than 3.9. Install a newer one as python3.",
    "garbage": "What came back is no answer. Check what `ssh HOST python3 --version` prints for this user.",
    "login_timeout": "No shell in time. Check the host's load and disks, and its login scripts.",
    "timeout": "Logged in, but no answer in time. Check the host's load and disks.",
    "no_ssh": "Cannot run the OpenSSH client here. Install it.",
}


def complaint(error: str, said: str = "") -> dict[str, Any]:
    """The error answer for one of the names in `ADVICE`, in the shape of the host program's own."""
    sentence = " ".join(ADVICE[error].split())
    return {"ok": False, "error": error, "detail": f"{sentence} ({said})" if said else sentence}


def classify(rc: int | None, stderr: str) -> tuple[str, str]:
    """What a call without an answer died of, and what to do: (error, sentence).

    `rc` is ssh's exit code: 255 for its own failures, else the remote command's; negative when ssh was
    killed, None when that is not known. What a remote command writes is not taken for ssh's words.
    """
    error = "garbage"
    if rc == 255 or rc is None or rc < 0:
        error = next((name for sign, name in MESSAGES if sign in stderr), "disconnected")
    elif rc == 127:
        error = "command_missing"
    elif "python3 is too old" in stderr:
        error = "python_too_old"
    last = (stderr.strip().splitlines() or [""])[-1].strip()[:300]
    said = last if rc == 255 else f"exit code {rc}: {last}"
    return error, str(complaint(error, said)["detail"])
