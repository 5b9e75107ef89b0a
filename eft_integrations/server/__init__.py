"""An OpenAI-compatible HTTP server over one or more compositions: `eft serve`, or `create_app` inside another program.

protocol, responses_protocol   bodies as they arrive           compositions   names, weights, which engine
chat, completions, responses   one API each: body -> request -> body or events
streaming                      events to the wire; a client that leaves, time limits
limits, errors, metrics        what stands around every request
app, settings, command         assembled, configured, started
"""

from __future__ import annotations
