"""Where a run may be kept but at a server of ours, as far as commands can look at it there: in a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from arendezvous.errors import RendezvousSettingsError

if TYPE_CHECKING:
    from arendezvous.backends.port import RendezvousBackend
    from arendezvous.net.endpoint import Endpoint

ETCD: Final = ("etcd", "etcd-v2")
STORES: Final = ("c10d", *ETCD)


def backend_at(endpoint: Endpoint, run_id: str, timeout: float) -> RendezvousBackend:
    """Makes the backend, not entered yet, through which a command looks at a run in a store.

    Args:
        endpoint: Where the store is; one of `STORES`.
        run_id: The run.
        timeout: Seconds to try to reach it.

    Raises:
        RendezvousSettingsError: The command was given what has no meaning there, or the user of etcd in the
            environment is not complete.
    """
    from arendezvous.opening import open_backend

    options: dict[str, Any] = {"read_timeout": timeout, "join_timeout": timeout}
    if endpoint.scheme == "c10d":
        return open_backend(endpoint, run_id, {**options, "is_host": False})
    return open_backend(endpoint, run_id, {**options, "etcd": etcd_settings(endpoint)})


def etcd_settings(endpoint: Endpoint) -> Any:
    """How to reach etcd: by the files that the command was given, and as the user in the environment.

    Raises:
        RendezvousSettingsError: See `backend_at`.
    """
    from arendezvous.cli.credentials import given
    from arendezvous.etcd.settings import EtcdSettings

    credentials = given.get()
    if credentials.server_name:
        expected = f"left out for {endpoint.scheme}://, where certificates have to be for the URL's hosts"
        raise RendezvousSettingsError.of("tls_server_name", credentials.server_name, expected)
    protocol = {"protocol": "https"} if credentials.uses_tls else {}
    return EtcdSettings.of(protocol, tls=credentials.files)
