"""Addresses as people and URLs write them."""

from __future__ import annotations


def authority(host: str, port: int) -> str:
    """`host:port` as it stands in a URL: an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
