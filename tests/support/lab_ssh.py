"""Keys, accounts and the SSH server's configuration for the hosts of a lab."""

import os
import pwd
import subprocess
from pathlib import Path

from tests.support.netns import tool

ROOT_HOME = pwd.getpwuid(0).pw_dir
USER = "ray"
_UID = 60_077
_CONFIG = """\
Port 22
HostKey {host_key}
PidFile /run/sshd.pid
AuthorizedKeysFile .ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
MaxStartups 200
LogLevel VERBOSE
SetEnv RAY_USAGE_STATS_ENABLED=0
Subsystem sftp internal-sftp
"""


def make_key(file: Path, comment: str) -> str:
    """A new ed25519 key pair, in place of an old one; returns the public half without the comment."""
    file.unlink(missing_ok=True)
    subprocess.run(
        [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(file)], check=True
    )
    return " ".join(file.with_suffix(".pub").read_text().split()[:2])


def write_accounts(etc: Path, hostname: str, addresses: dict[str, str]) -> dict[str, str]:
    """The host's files of users and names, with one plain user; returns target -> file."""
    others = [line for line in Path("/etc/passwd").read_text().splitlines() if line.split(":")[0] != USER]
    groups = [line for line in Path("/etc/group").read_text().splitlines() if line.split(":")[0] != USER]
    texts = {
        "passwd": [*others, f"{USER}:x:{_UID}:{_UID}::/home/{USER}:/bin/sh"],
        "group": [*groups, f"{USER}:x:{_UID}:"],
        "shadow": [f"{line.split(':')[0]}:*:19000:0:99999:7:::" for line in [*others, f"{USER}:"]],
        "hostname": [hostname],
        "resolv.conf": ["options timeout:1 attempts:1"],  # no name server: lookups fail at once
        "hosts": [
            "127.0.0.1 localhost",
            *(f"{address} {name}" for name, address in addresses.items()),
        ],
    }
    for name, lines in texts.items():
        (etc / name).write_text("\n".join(lines) + "\n")
    (etc / "shadow").chmod(0o600)
    # A link leads into a folder that is covered on the host; it needs no file then.
    own = [name for name in texts if Path(f"/etc/{name}").is_file() and not Path(f"/etc/{name}").is_symlink()]
    return {f"/etc/{name}": str(etc / name) for name in own}


def authorize(homes: dict[str, Path], public_key: str) -> None:
    """Let the key log in, as every user whose home is given."""
    for user, home in homes.items():
        folder = home / ".ssh"
        folder.mkdir(mode=0o700, parents=True)
        (folder / "authorized_keys").write_text(public_key + "\n")
        (folder / "authorized_keys").chmod(0o600)
        if user == USER:
            for path in (home, folder, folder / "authorized_keys"):
                os.chown(path, _UID, _UID)


def write_server_config(file: Path, host_key: Path) -> None:
    """The configuration of the host's own SSH server."""
    file.write_text(_CONFIG.format(host_key=host_key))
    newer = "PerSourcePenalties no\n"  # from OpenSSH 9.8 on, refused logins shut a client out
    with_it = file.with_suffix(".newer")
    with_it.write_text(_CONFIG.format(host_key=host_key) + newer)
    test = subprocess.run([tool("sshd"), "-t", "-f", str(with_it)], capture_output=True, check=False)
    if test.returncode == 0:
        with_it.replace(file)
    else:
        with_it.unlink()
