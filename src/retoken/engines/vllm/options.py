"""What can be asked for: `--additional-config '{"retoken": {...}}'`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retoken.attach.checkpoint import FIELD
from retoken.errors import ConfigError
from retoken.serving.place import Asked

ACCEPTED = ("tables", "path", "budget", "rows", "counts", "prefetch", "gather", "verify")
"""As for `retoken.load`."""


def read_options(additional_config: Any) -> dict[str, Any]:
    """The options of the plugin.

    Raises:
        ConfigError: one it does not know, or no mapping.
    """
    whole = additional_config if isinstance(additional_config, Mapping) else {}
    options = whole.get(FIELD, {})
    if not isinstance(options, Mapping):
        raise ConfigError(f"additional_config: {FIELD} is {options!r}; accepted: a mapping of options")
    unknown = sorted(set(options) - set(ACCEPTED))
    if unknown:
        raise ConfigError(
            f"additional_config: option of {FIELD} is {unknown[0]!r}; accepted: {', '.join(ACCEPTED)}"
        )
    return dict(options)


def asked_of(options: Mapping[str, Any], packed: bool) -> Asked:
    """Where rows are asked to be; by default on disk where the folder has them packed, else resident.

    Raises:
        ConfigError: tiers, a budget or a way to prefetch that are none.
    """
    tables = options.get("tables") or ("disk" if packed else "device")
    given = {name: options.get(name) for name in ("path", "rows", "counts")}
    verify, prefetch = options.get("verify", False), options.get("prefetch", "record")
    gather = options.get("gather", "host")
    return Asked.of(tables, options.get("budget"), **given, verify=verify, prefetch=prefetch, gather=gather)
