# SPDX-License-Identifier: Apache-2.0
"""Keys kept in the TPM at handles that the configuration names, so that they need not be made at every start.

    handle empty   → the key is made and TPM2_EvictControl keeps it there, once
    handle taken   → by our key: used as it is; by anything else: refused by name, and nothing is overwritten

A key at a handle is ours when its Name is the one that this TPM gives for our template. Making it to compare takes as long as the
handle was meant to save, so the Name is remembered in a file; where that says nothing of what is found, the key is made and
compared. On the TPM's thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_trust.errors import IdentityError
from jarvis_trust.keyfiles import read_private, replace_private
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_CAP
from tpm2_pytss.TSS2_Exception import TSS2_Exception

from jarvis_agent.config import AgentConfig
from jarvis_agent.errors import TpmError
from jarvis_agent.tpm_keys import Made

_LOG = logging.getLogger(__name__)

FIRST_HANDLE, LAST_HANDLE = 0x81000000, 0x817FFFFF
"""Persistent handles of the owner (TCG registry of handles); the rest are the platform's."""
NAMES_FILE = "tpm-handles.json"
_PUT, _FOUND = "put", "found"
"""Whether we filled the handle or our key was there already: an EK often is, since its template is everybody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyHandles:
    """Where the keys are kept; None: nowhere, the key is made at each start."""

    ak: int | None = None
    ek: int | None = None
    tls_key: int | None = None
    names: Path | None = None
    """File of the Names that were found at them."""

    @classmethod
    def of(cls, config: AgentConfig) -> KeyHandles:
        """Those of an agent's configuration."""
        names = config.state_directory / NAMES_FILE
        return cls(ak=config.ak_handle, ek=config.ek_handle, tls_key=config.tls_key_handle, names=names)


class PersistentKeys:
    """The configured handles of one connected TPM."""

    def __init__(self, esapi: ESAPI, handles: KeyHandles) -> None:
        """Nothing is asked yet."""
        self._esapi, self._handles = esapi, handles

    def keep(self, handle: int, *, field: str, key: str, make: Callable[[], Made]) -> Made:
        """The key at a handle, put there when the handle is empty.

        Args:
            handle: FIRST_HANDLE..LAST_HANDLE.
            field: of the configuration, for errors.
            key: which key it has to be, e.g. "TLS key 0".
            make: makes it, loaded; it is flushed here.

        Raises:
            TpmError: TPM_HANDLE_TAKEN, something else is there; TPM_HANDLE_REFUSED, the TPM keeps nothing there.
        """
        found = self.look(handle)
        known = self._names().get(f"{handle:#010x}", {})
        if found is not None and (known.get("key"), known.get("name")) == (key, _name_of(found[1])):
            return found
        made, public = make()
        origin = _FOUND
        try:
            if found is not None and found[1] != public:
                if not _put_by_us(known, found[1]) or _kind_of(known["key"]) != _kind_of(key):
                    message = f"{field} = {handle:#010x}: {described(found[1])} is there, which is not our {key}"
                    raise TpmError("TPM_HANDLE_TAKEN", message)
                self.remove(handle, found[0])  # ours, of an earlier number
                found = None
            if found is None:
                found, origin = (self._put(made, handle, field), public), _PUT
        finally:
            self._esapi.flush_context(made)
        self._remember(handle, {"key": key, "name": _name_of(public), "origin": origin})
        return found

    def look(self, handle: int) -> Made | None:
        """What is at a handle; None when it is empty."""
        _, capability = self._esapi.get_capability(TPM2_CAP.HANDLES, handle, 1)
        data = capability.data
        handles = data.handles
        if not len(handles) or int(handles[0]) != handle:
            return None
        resource = self._esapi.tr_from_tpmpublic(handle)
        public, *_ = self._esapi.read_public(resource)
        area = public.publicArea
        return resource, bytes(area.marshal())

    def remove_ours(self, handle: int) -> bool:
        """Empties a handle that holds a key which we put there; False when it is empty.

        Raises:
            TpmError: TPM_HANDLE_TAKEN, something else is there.
        """
        found = self.look(handle)
        if found is None:
            return False
        if not _put_by_us(self._names().get(f"{handle:#010x}", {}), found[1]):
            message = f"{handle:#010x}: {described(found[1])} is there, which this agent did not put there"
            raise TpmError("TPM_HANDLE_TAKEN", message)
        self.remove(handle, found[0])
        return True

    def remove(self, handle: int, resource: ESYS_TR) -> None:
        """TPM2_EvictControl of what is there."""
        self._esapi.evict_control(ESYS_TR.OWNER, resource, handle)

    def _put(self, made: ESYS_TR, handle: int, field: str) -> ESYS_TR:
        try:
            resource: ESYS_TR = self._esapi.evict_control(ESYS_TR.OWNER, made, handle)
        except TSS2_Exception as error:
            raise TpmError("TPM_HANDLE_REFUSED", f"{field} = {handle:#010x}: the TPM keeps nothing there: {error}") from error
        _LOG.info("%s: the key is kept at %#010x from now on", field, handle)
        return resource

    def _names(self) -> dict[str, dict[str, str]]:
        path = self._handles.names
        if path is None or not path.exists():
            return {}
        try:
            values: Any = json.loads(read_private(path))
            return {str(handle): {str(name): str(value) for name, value in entry.items()} for handle, entry in values.items()}
        except (ValueError, AttributeError, IdentityError) as error:
            _LOG.warning("%s cannot be read and is not used: %s", path, error)
            return {}

    def _remember(self, handle: int, entry: dict[str, str]) -> None:
        path = self._handles.names
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            text = json.dumps(self._names() | {f"{handle:#010x}": entry}, sort_keys=True)
            replace_private(path, text.encode())


def _name_of(public: bytes) -> str:
    """The object's Name, hex."""
    return "000b" + hashlib.sha256(public).hexdigest()


def _put_by_us(known: dict[str, str], public: bytes) -> bool:
    return (known.get("name"), known.get("origin")) == (_name_of(public), _PUT)


def _kind_of(key: str) -> str:
    """Without the number: TLS key, of TLS key 3."""
    return key.rstrip("0123456789").rstrip()


def described(public: bytes) -> str:
    """An object for people: type, attributes, Name."""
    kind = {0x0001: "an RSA key", 0x0023: "an ECC key", 0x0008: "a keyed hash", 0x0025: "a symmetric key"}
    number = int.from_bytes(public[:2], "big")
    return f"{kind.get(number, f'an object of type {number:#06x}')} (attributes {public[4:8].hex()}, Name {_name_of(public)})"
