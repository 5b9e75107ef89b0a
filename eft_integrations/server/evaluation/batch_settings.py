"""Whether there are files and batches, and how much they may hold."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class BatchSettings(BaseModel):
    """Files and batches. Without a folder there are none, and their routes are not there."""

    model_config = ConfigDict(extra="forbid")

    folder: Path | None = Field(
        default=None, description="holds files and batches, also over a restart; None: there are none"
    )
    max_files: int = Field(default=256, ge=1, description="files of all callers, results included")
    max_bytes: int = Field(default=2**30, ge=1024, description="bytes of all files, results included")
    max_lines: int = Field(default=50_000, ge=1, description="requests in one batch")
    max_unfinished: int = Field(default=16, ge=1, description="batches of all callers that are not over")
    max_batches: int = Field(
        default=1000,
        ge=1,
        description="batches that are remembered; with more, the oldest of those that are over are forgotten",
    )
    max_running: int = Field(
        default=8, ge=1, description="requests of all batches at once; never more than a quarter of max_num_seqs"
    )
    window_s: FiniteFloat = Field(default=24 * 3600.0, gt=0, description="a batch that takes longer expires")
    kept_s: FiniteFloat = Field(
        default=7 * 24 * 3600.0, gt=0, description="files and batches are forgotten so long after"
    )
