"""What one client may take of the server's connections and of their time."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class ConnectionSettings(BaseModel):
    """Times within which a client must have sent or read what it owes, and how many connections there may be."""

    model_config = ConfigDict(extra="forbid")

    head_timeout_s: FiniteFloat = Field(
        default=10.0, gt=0, description="a request's head must be whole so long after the connection or its first byte"
    )
    receive_timeout_s: FiniteFloat = Field(
        default=60.0, gt=0, description="a request's body must be whole so long after its head; else 408"
    )
    send_timeout_s: FiniteFloat = Field(
        default=30.0, gt=0, description="a client that reads nothing for so long, while there is something, is let go"
    )
    keep_alive_timeout_s: int = Field(
        default=20, ge=1, description="a connection without a request is kept open so long after an answer"
    )
    max_held_body_bytes: int = Field(
        default=64 * 2**20,
        ge=2**20,
        description="bytes of bodies over 64 KiB in memory at once; more wait for their turn",
    )
    max_connections: int = Field(
        default=1024,
        ge=1,
        description="most at once; then a new one takes the place of the one that has waited longest without being answered",
    )
